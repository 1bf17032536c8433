// What a node says while it runs (a report, a warning, why it failed), as a text under it that stays until it runs again.
import { put } from "./panel/lines.mjs";

const WIDGET = "pixart_delta_said";
const OURS = "PixArtDelta"; // how the classes of our nodes begin

export class Said {
    #texts = new Map(); // node -> { prompt, lines }

    constructor(app, api) {
        this.app = app;
        api.addEventListener("pixart_delta.said", ({ detail }) => this.#take(detail));
        // The editor shows the reason behind a button of a message that goes away.
        api.addEventListener("execution_error", ({ detail }) => {
            const { prompt_id: prompt, node_id: node, node_type: type, exception_message: text } = detail;
            if (type?.startsWith(OURS) && text) this.#take({ prompt, node, text: text.trim(), alone: false });
        });
        api.addEventListener("executing", ({ detail }) => this.#clear(detail));
    }

    #take({ prompt, node: id, text, alone }) {
        const node = this.#find(id);
        if (!node) return;
        const before = this.#texts.get(node);
        const kept = before?.prompt === prompt && !alone ? before.lines.filter((line) => line !== text) : [];
        const lines = text ? [...kept, text] : kept;
        this.#texts.set(node, { prompt, lines });
        put(node, lines.join("\n"), WIDGET);
    }

    #clear(id) {
        const node = id && this.#find(id);
        // What it was told to say comes after this; in a subgraph several nodes share the one that is seen.
        if (!node || node.subgraph || !this.#texts.delete(node)) return;
        // Where a whole run is told at once (live/quiet.mjs), mostly the same text follows: then it need not go and come.
        setTimeout(() => this.#texts.has(node) || put(node, "", WIDGET));
    }

    /** The node of the open graph; of one inside a subgraph the subgraph, which is what can be seen. */
    #find(id) {
        return (this.app.rootGraph ?? this.app.graph).getNodeById(String(id).split(":")[0]);
    }
}
