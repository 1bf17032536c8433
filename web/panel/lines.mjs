// What became of its job, as a text under each node that makes jobs or asks for one.
import { h, setText } from "./dom.mjs";
import { line } from "./text.mjs";

const JOB = "pixart_delta_job"; // in a node's output, and in its properties: saved with the workflow
// These nodes, and what their jobs are ("": any). Checked, because another graph may have been opened since the prompt was
// sent, with another node of the same id.
const COMMAND = {
    PixArtDeltaDataset: "prepare", PixArtDeltaPromptDataset: "prepare", PixArtDeltaTrainLCD: "lcd", PixArtDeltaTrainLCMLora: "lcm-lora",
    PixArtDeltaTrainControlNet: "controlnet", PixArtDeltaFineTune: "finetune", PixArtDeltaTrainingStatus: "",
    PixArtDeltaTrainedResult: "",
};
const WIDGET = "pixart_delta_line";
const LINE = 16; // px
const MOST = 12; // lines, as in the style sheet; more scroll
const grown = new WeakMap(); // node -> { from, to }: its height before a text made it grow, and since
const FRAME = 30; // px that are not text: its own padding, and what the canvas leaves free around a widget

export class Lines {
    #rest = new WeakMap(); // node -> what its text says besides: an estimate, a report

    constructor(app, store) {
        Object.assign(this, { app, store });
        store.addEventListener("change", () => this.update());
    }

    /** Follow the jobs of a new node, if it is one of ours. */
    attend(node) {
        if (!(node.comfyClass in COMMAND)) return;
        const before = node.onExecuted;
        node.onExecuted = (output) => {
            before?.call(node, output);
            if (output) this.#take(node, output);
        };
    }

    /** Show what the store holds now under the nodes of the open graph. */
    update() {
        for (const node of nodes(this.app.rootGraph ?? this.app.graph)) {
            if (node.comfyClass in COMMAND && node.properties?.[JOB]) this.#show(node);
        }
    }

    #take(node, output) {
        const id = output[JOB]?.[0];
        if (id) {
            if (!fits(node, this.store.jobs.get(id))) return;
            node.properties[JOB] = id;
            // The first line says how far the job was, and how far it is now comes in its place.
            this.#rest.set(node, (output.text ?? []).join("\n").trimEnd().split("\n").slice(1));
            this.#show(node);
        } else if (output.text) {
            // It made no job: an estimate. Nothing else of the frontend shows a text of these nodes.
            delete node.properties[JOB];
            put(node, output.text.join("\n"));
        }
    }

    #show(node) {
        // A workflow may come from another server, and a job may have been deleted: then there is nothing to say.
        const job = this.store.jobs.get(node.properties[JOB]);
        put(node, job && fits(node, job) ? [line(job), ...(this.#rest.get(node) ?? [])].join("\n") : "");
    }
}

/** Whether a job can be the node's; also if it is not known yet. */
function fits(node, job) {
    const command = COMMAND[node.comfyClass];
    return !job || !command || job.command === command;
}

/** All nodes of a graph, those of its subgraphs too. */
function* nodes(graph) {
    for (const node of graph?.nodes ?? []) {
        yield node;
        if (node.subgraph) yield* nodes(node.subgraph);
    }
}

/** Put a text under a node; an empty one takes it away. A DOM widget, which both renderers show, never saved. */
export function put(node, text, name = WIDGET) {
    const widget = node.widgets?.find((each) => each.name === name);
    if (widget?.element.textContent === text || (!widget && !text)) return;
    if (!text) {
        node.removeWidget(widget);
    } else {
        const { element } = widget ?? add(node, name);
        setText(element, text);
        element.classList.toggle("pxd-columns", /\S {2,}\S/.test(text)); // numbers below one another
    }
    fit(node);
    node.setDirtyCanvas(true, true);
}

/** The classic canvas gives a widget the room that is left; where too little is, the node grows, until the text is shorter. */
function fit(node) {
    const before = grown.get(node);
    const own = before?.to === node.size[1] ? before.from : node.size[1];
    const height = Math.max(own, node.computeSize()[1]);
    if (height > own) grown.set(node, { from: own, to: height });
    else grown.delete(node);
    if (height !== node.size[1]) node.setSize([node.size[0], height]);
}

function add(node, name) {
    const element = h("div", { class: "pxd-line" });
    const lines = () => element.textContent.split("\n").reduce((sum, line) => sum + wrapped(line, node.size[0]), 0);
    const height = () => LINE * Math.min(MOST, lines()) + FRAME;
    // Its type is nobody else's: Nodes 2.0 then shows the element itself.
    const widget = node.addDOMWidget(name, name, element, {
        serialize: false, hideOnZoom: false, getValue: () => element.textContent, getMinHeight: height, getMaxHeight: height,
    });
    widget.serialize = false;
    return widget;
}

/** How many lines a text takes in a node of that width, at the 6.6 px that a letter has, on average or in a fixed font. */
function wrapped(text, width) {
    return Math.max(1, Math.ceil((text.length * 6.6) / Math.max(60, width - 46)));
}
