// Runs that follow a drawing, of which the editor hears at their end. A run sends some thirty messages, and for each the
// editor draws itself anew: without a GPU that takes the processor longer than a small model takes for the picture. So
// the server sends them to a connection of their own (nodes/bridge/quiet.py), and what they change is passed on at once
// when the picture is there. A run that takes longer than expected is passed on from then on, message by message.

const PREFIX = "pixart_delta_live_"; // as in nodes/bridge/quiet.py
export const PATIENCE = 3000; // ms: from then on people want to see how far a run is
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
// Of what is over nobody wants to see how far it was; that it was interrupted the server tells every connection.
const PASSED = ["execution_start", "executing", "executed", "execution_error", "execution_success", "pixart_delta.said"];

/** Events: those of api.addEventListener that say that a run begins and ends, with its id, as soon as they come. */
export class Quiet extends EventTarget {
    #socket = null;
    #page = null; // id of the page's own connection, of which this one's is made
    #run = null; // id of the run under way
    #held = null; // its messages, as long as they are held back
    #timer = 0;
    #passing = Promise.resolve();

    constructor(api) {
        super();
        this.api = api;
    }

    /** Connect, if it is not; returns whether the server can send a run's messages here by now. */
    listen() {
        const page = this.api.clientId, state = this.#socket?.readyState;
        if (state === WebSocket.OPEN && this.#page === page) return true;
        if (page && state !== WebSocket.CONNECTING) this.#open(page);
        return false;
    }

    #open(page) {
        this.#socket?.close();
        this.#page = page;
        const address = new URL(`${this.api.api_base}/ws`, window.location.href);
        address.protocol = address.protocol.replace("http", "ws");
        address.searchParams.set("clientId", PREFIX + page);
        const socket = (this.#socket = new WebSocket(address));
        socket.addEventListener("message", ({ data }) => typeof data === "string" && this.#take(JSON.parse(data)));
        socket.addEventListener("close", () => socket === this.#socket && this.#lose());
    }

    #take({ type, data }) {
        const id = data?.prompt_id ?? data?.prompt;
        if (type === "execution_start") this.#begin(id);
        if (id === undefined || id !== this.#run) return;
        if (PASSED.includes(type)) this.#pass(type, data);
        if (ENDS.includes(type)) this.#end(type, id);
    }

    #begin(id) {
        this.#run = id;
        this.#held = [];
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.#release(), PATIENCE);
        this.#tell("execution_start", id);
    }

    #pass(type, data) {
        // The editor knows the node alone of what runs; nothing runs when all has ended.
        const detail = type === "executing" ? (data.display_node || data.node) : data;
        if (this.#held) this.#held.push([type, detail]);
        else this.#forward([[type, detail]]);
        if (type === "executed") this.#release();
    }

    #end(type, id) {
        this.#release();
        this.#tell(type, id);
    }

    #release() {
        clearTimeout(this.#timer);
        const held = this.#held ?? [];
        this.#held = null;
        this.#forward(held);
    }

    #forward(messages) {
        this.#passing = this.#passing.then(async () => {
            for (const [type, detail] of messages) {
                this.api.dispatchCustomEvent(type, detail);
                // App mode looks which run it is, before it can show what came of it.
                if (type === "execution_start") await new Promise((resolve) => setTimeout(resolve));
            }
        });
    }

    #tell(type, id) {
        this.dispatchEvent(new CustomEvent(type, { detail: { prompt_id: id } }));
    }

    /** The connection is gone, and with it what the run under way would have told. */
    #lose() {
        this.#socket = null;
        if (!this.#run) return;
        this.#end("execution_interrupted", this.#run);
        this.#forward([["executing", null]]);
        this.#run = null;
    }
}
