// What a person does with a job besides the queue's own actions: rename, use, train again, duplicate, open its folder.
import { h } from "./dom.mjs";
import { t } from "./text.mjs";

const RESULT = "PixArtDeltaTrainedResult";
const ICON = { use: "share-alt", again: "refresh", duplicate: "copy", rename: "pencil", open: "folder-open" };

export class Tools {
    #buttons = new Map();

    /** @param {(severity, summary, detail) => void} say */
    constructor(store, app, id, say) {
        Object.assign(this, { store, app, id, say });
        this.element = h("div", { class: "pxd-buttons pxd-tools-row" });
    }

    /** Offer what fits the job as it is now. */
    update(job) {
        const training = job.command && job.command !== "prepare";
        const offered = { use: training && job.export, again: training && ["done", "stopped", "failed", "paused"].includes(job.state), duplicate: training, rename: job.command, open: true };
        for (const [name, fits] of Object.entries(offered)) this.#button(name).hidden = !fits;
    }

    #button(name) {
        if (!this.#buttons.has(name)) {
            const button = h("button", { type: "button", class: "pxd-button", "data-tool": name, title: t(`tool_${name}_hint`), onclick: () => this.#press(name) },
                h("i", { class: `pi pi-${ICON[name]}`, "aria-hidden": "true" }), t(`tool_${name}`));
            this.#buttons.set(name, button);
            this.element.append(button);
        }
        return this.#buttons.get(name);
    }

    async #press(name) {
        try {
            await { use: () => this.#use(), again: () => this.#again(), duplicate: () => this.#duplicate(), rename: () => this.#rename(), open: () => this.#open() }[name]();
        } catch (error) {
            this.say("error", t("request_failed"), error.message);
        }
    }

    /** A node that loads its result, in the middle of the open graph. */
    #use() {
        const node = window.LiteGraph.createNode(RESULT);
        const widget = node.widgets.find((each) => each.name === "job");
        widget.value = this.id;
        const { canvas } = this.app, area = canvas.visible_area ?? [0, 0, 800, 600];
        node.pos = [area[0] + area[2] / 2 - node.size[0] / 2, area[1] + area[3] / 2 - node.size[1] / 2];
        canvas.graph.add(node);
        canvas.selectNode?.(node);
        this.say("info", t("used"), node.title);
    }

    /** The same settings once more, as a job of its own. */
    async #again() {
        const { command, name, settings } = await this.store.get(`/${this.id}`);
        const job = await this.store.train({ command, name: next(name), settings: plain(settings), check: false });
        this.say("info", t("asked_again"), job.text.split("\n")[0]);
    }

    async #duplicate() {
        const { command, name, settings } = await this.store.get(`/${this.id}`);
        this.element.dispatchEvent(new CustomEvent("pxd-form", { bubbles: true, detail: { job: { command, settings: plain(settings) }, name: next(name) } }));
    }

    async #rename() {
        const before = this.store.jobs.get(this.id).name;
        const name = await this.app.extensionManager.dialog.prompt({ title: t("tool_rename"), message: t("name_hint"), defaultValue: before });
        if (name && name !== before) await this.store.act(this.id, "rename", { name });
    }

    async #open() {
        const { folder, opened } = await this.store.post(`/jobs/${this.id}/open`, {});
        if (opened) return;
        // No screen on the server, or it is another machine: the path to take along.
        await navigator.clipboard?.writeText(folder).catch(() => {});
        this.say("info", t("folder_copied"), folder);
    }
}

/** Settings without those that the queue chooses. */
function plain(settings) {
    return Object.fromEntries(Object.entries(settings).filter(([name]) => !["run", "output", "only_inside"].includes(name)));
}

/** "Lake" -> "Lake 2" -> "Lake 3" */
function next(name) {
    const [, stem, number] = name.match(/^(.*?)(?: (\d+))?$/);
    return `${stem} ${Number(number ?? 1) + 1}`;
}
