// One training: buttons, numbers, chart, samples, log.
import { Chart } from "./chart.mjs";
import { arrange, h, setText } from "./dom.mjs";
import { Gallery } from "./gallery.mjs";
import { bytes, duration, number, t } from "./text.mjs";

const ORDER = ["start", "resume", "retry", "pause", "stop", "sample", "save", "up", "down", "kill", "delete"];
const ICON = {
    start: "play", resume: "play", retry: "replay", pause: "pause", stop: "stop", sample: "image", save: "save",
    up: "arrow-up", down: "arrow-down", kill: "times", delete: "trash",
};
const LOOK = 1000; // ms between two looks at the metrics of a running job; samples and log every third

export class Detail {
    #buttons = new Map();
    #drawn = "";
    #looks = 0;

    constructor(store, app, id) {
        Object.assign(this, { store, app, id });
        this.reason = h("p", { class: "pxd-reason" });
        this.bar = h("div", { class: "pxd-buttons" });
        this.facts = h("dl", { class: "pxd-facts" });
        this.chart = new Chart();
        this.gallery = new Gallery(store, id);
        this.text = h("pre", { tabindex: "0" });
        this.log = h("details", { class: "pxd-log", ontoggle: () => this.log.open && this.#readLog() }, h("summary", {}, t("log")), this.text);
        this.element = h("section", { class: "pxd-detail" },
            this.reason, this.bar, this.facts, this.chart.element, this.gallery.element, this.log);
        this.update();
        this.timer = setInterval(() => this.#look(), LOOK);
        this.#read();
    }

    get job() {
        return this.store.jobs.get(this.id);
    }

    /** Show what the store holds now. */
    update() {
        const job = this.job;
        if (!job) return;
        setText(this.reason, job.reason);
        this.reason.hidden = !job.reason;
        this.element.dataset.state = job.state;
        const offered = job.actions.flatMap((action) => (action === "move" ? ["up", "down"] : [action]));
        arrange(this.bar, ORDER.filter((name) => offered.includes(name)).map((name) => this.#button(name)));
        this.#showFacts(job);
        const drawn = `${job.state} ${job.attempt} ${this.store.online}`;
        if (this.#drawn && drawn !== this.#drawn) {
            this.chart.reset();
            this.#read();
        }
        this.#drawn = drawn;
    }

    destroy() {
        clearInterval(this.timer);
        this.chart.destroy();
        this.gallery.destroy();
    }

    #showFacts(job) {
        const facts = {
            loss: job.loss !== undefined && number(job.loss),
            learning_rate: job.learning_rate !== undefined && number(job.learning_rate),
            rate: job.seconds_per_step !== undefined && t("seconds_per_step", { value: number(job.seconds_per_step) }),
            memory: job.memory > 0 && bytes(job.memory),
            device: job.device,
            command: job.command,
            export: job.export,
            checkpoint: job.checkpoint,
            created: job.created > 0 && new Date(job.created * 1000).toLocaleString(),
            id: job.id,
        };
        const shown = Object.entries(facts).filter(([, value]) => value);
        const text = JSON.stringify(shown);
        if (this.facts.dataset.shown === text) return;
        this.facts.dataset.shown = text;
        this.facts.replaceChildren(...shown.flatMap(([key, value]) => [h("dt", {}, t(key)), h("dd", {}, value)]));
    }

    #button(name) {
        if (!this.#buttons.has(name)) {
            this.#buttons.set(name, h("button",
                { type: "button", class: "pxd-button", "data-action": name, onclick: () => this.#press(name) },
                h("i", { class: `pi pi-${ICON[name]}`, "aria-hidden": "true" }), t(name)));
        }
        return this.#buttons.get(name);
    }

    async #press(name) {
        const job = this.job;
        if (name === "delete" || name === "kill") {
            const sure = await this.app.extensionManager.dialog.confirm({
                title: t(`${name}_title`), message: t(`${name}_message`, { name: job.name }), type: "delete",
            });
            if (!sure) return;
        }
        const button = this.#button(name);
        button.disabled = true;
        try {
            if (name === "up" || name === "down") await this.#move(name);
            else await this.store.act(this.id, name);
            if (name === "sample" || name === "save") this.#say("info", t(`asked_${name}`), job.name);
        } catch (error) {
            this.#say("error", t("request_failed"), error.message);
        } finally {
            button.disabled = false;
        }
    }

    async #move(direction) {
        const line = this.store.sorted().filter((job) => job.state === "queued").map((job) => job.id);
        const at = line.indexOf(this.id);
        if (direction === "up" && at === 0) return;
        await this.store.act(this.id, "move", { before: (direction === "up" ? line[at - 1] : line[at + 2]) ?? "" });
    }

    #say(severity, summary, detail) {
        this.app.extensionManager.toast.add({ severity, summary, detail, life: severity === "error" ? 10000 : 4000 });
    }

    #look() {
        const busy = ["preparing", "running", "stopping"].includes(this.job?.state);
        if (busy && !document.hidden && this.store.online) this.#read(this.#looks++ % 3 === 0);
    }

    async #read(everything = true) {
        if (this.reading) return;
        this.reading = true;
        try {
            await this.chart.update(this.store, this.id);
            if (everything) await this.gallery.update();
            if (everything && this.log.open) await this.#readLog();
        } catch {
            // The store notices that the server is gone, and says so; the next look reads again.
        } finally {
            this.reading = false;
        }
    }

    async #readLog() {
        const { text } = await this.store.get(`/${this.id}/log`);
        const atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 4;
        setText(this.text, text);
        if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    }
}

/** "step 12 of 100 · loss 0.02 · 3 min left", as far as it is known. */
export function summary(job) {
    const parts = [];
    if (job.step !== undefined) parts.push(t(job.steps === undefined ? "step_only" : "step", job));
    if (job.loss !== undefined) parts.push(`${t("loss")} ${number(job.loss)}`);
    if (job.state === "running" && job.seconds_left !== undefined) parts.push(t("left", { time: duration(job.seconds_left) }));
    if (job.says) parts.push(job.says);
    return parts.join(" · ");
}
