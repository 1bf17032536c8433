// Runs the previews behind a node, when what they show has changed. One run at a time: what changes meanwhile is taken up
// by the next, so that nothing is drawn that is overtaken already.

import { PATIENCE } from "./quiet.mjs";

const SLOW = 700; // ms: a run that took longer is interrupted when a stroke ends, a shorter one may finish
const QUICK = 150; // ms: only such runs follow a stroke while it is drawn; a longer one would hold up the one that counts
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

export class Runner {
    #busy = false;
    #again = false;
    #started = null; // id of a run that began after ours was sent: ours, unless somebody queued another before it
    #since = 0;
    #took = 0; // ms of the last whole run
    #sent = ""; // the prompt that it was made from
    #sending = Promise.resolve(); // the editor takes one prompt after the other

    /**
     * @param {string} name of the node's widget that switches this on
     * @param {(output: object) => void} change makes of the editor's prompt the one to run
     * @param {Quiet} quiet what the editor hears of short runs at their end, if it need not see how far they are
     */
    constructor(app, api, node, name, { change = null, quiet = null } = {}) {
        Object.assign(this, { app, api, node, name, change, quiet });
        this.listeners = { execution_start: (event) => this.#start(event.detail.prompt_id) };
        for (const end of ENDS) this.listeners[end] = (event) => this.#end(event.detail.prompt_id, end === ENDS[0]);
        this.#each((source, name, listener) => source.addEventListener(name, listener));
    }

    destroy() {
        this.#each((source, name, listener) => source.removeEventListener(name, listener));
    }

    #each(work) {
        for (const source of [this.api, this.quiet].filter(Boolean)) {
            for (const [name, listener] of Object.entries(this.listeners)) work(source, name, listener);
        }
    }

    /** Whether the node is switched on and leads to a preview. */
    get on() {
        const widget = this.node.widgets?.find((each) => each.name === this.name);
        const open = this.node.graph === (this.app.rootGraph ?? this.app.graph); // in a subgraph ids are others
        return Boolean(widget?.value && open && this.node.mode === 0 && this.previews().length > 0);
    }

    /** Whether runs are so fast that they can follow a stroke while it is drawn. */
    get quick() {
        return this.#took > 0 && this.#took <= QUICK;
    }

    /** The prompt may be the same and its result another one: run it even so. */
    forget() {
        this.#sent = "";
    }

    /** Draw what there is now, or when the run under way has ended. `hurry` ends that one, if such runs are slow. */
    async run(hurry = false) {
        if (!this.on) return;
        if (this.#busy) {
            this.#again = true;
            if (hurry && this.#took > SLOW) await this.#interrupt();
            return;
        }
        this.#busy = true;
        this.#again = false;
        this.#started = null;
        try {
            if (!(await this.#send())) this.#free();
        } catch (error) {
            console.error("PixArt-δ:", error);
            this.#free();
        }
    }

    /** Ids of the Preview Image nodes that the node leads to: nothing that saves runs by itself. */
    previews() {
        const seen = new Set(), next = [this.node];
        while (next.length) {
            const node = next.pop();
            if (!node || seen.has(node)) continue;
            seen.add(node);
            const links = (node.outputs ?? []).flatMap((output) => output.links ?? []);
            next.push(...links.map((id) => node.graph.getNodeById(node.graph.getLink(id)?.target_id)));
        }
        return [...seen].filter((node) => node.type === "PreviewImage" && node.mode === 0).map((node) => String(node.id));
    }

    async #send() {
        await this.#sending;
        const prompt = await this.app.graphToPrompt();
        if (!this.on) return false; // another graph was opened meanwhile
        const { output } = prompt;
        this.change?.(output);
        const made = JSON.stringify(output);
        if (made === this.#sent) return false;
        this.#since = performance.now();
        const queued = this.change ? this.#post(prompt) : this.app.queuePrompt(0, 1, [...this.previews(), ...this.#apart()]);
        this.#sending = queued.catch(() => {});
        const sent = await queued;
        if (sent) this.#sent = made;
        return sent;
    }

    /** The node itself among what shall run asks the server to send the run's messages to `quiet`. */
    #apart() {
        const heard = this.quiet?.listen();
        return heard && this.#took > 0 && this.#took <= PATIENCE ? [String(this.node.id)] : [];
    }

    async #post(prompt) {
        const answer = await this.api.queuePrompt(0, prompt, { partialExecutionTargets: this.previews() });
        return Boolean(answer?.prompt_id);
    }

    #start(id) {
        if (this.#busy && !this.#started) this.#started = id;
    }

    #end(id, whole) {
        if (!this.#busy || id !== this.#started) return;
        if (!whole) this.forget();
        this.#took = performance.now() - this.#since;
        this.#free();
    }

    #free() {
        this.#busy = false;
        if (this.#again) this.run();
    }

    /** End the run under way: the server's queue says whether it really is ours. */
    async #interrupt() {
        const { queue_running: running } = await (await this.api.fetchApi("/queue")).json();
        const ours = running.find(([, id, prompt]) => id === this.#started && JSON.stringify(prompt) === this.#sent);
        if (ours) await this.api.interrupt(this.#started);
    }
}
