// One job: samples, buttons, numbers, chart, settings, log. A dataset's preparation has no curve and no samples.
import { Chart } from "./chart.mjs";
import { arrange, h, setText } from "./dom.mjs";
import { Gallery } from "./gallery.mjs";
import { bytes, number, t, tFor } from "./text.mjs";
import { Tools } from "./tools.mjs";

const ORDER = ["start", "resume", "retry", "pause", "stop", "sample", "save", "up", "down", "kill", "delete"];
const ICON = {
    start: "play", resume: "play", retry: "replay", pause: "pause", stop: "stop", sample: "image", save: "save",
    up: "arrow-up", down: "arrow-down", kill: "times", delete: "trash",
};
const LOOK = 1000; // ms between two looks at the metrics of a running job; samples and log every third

export class Detail {
    #buttons = new Map();
    #busy = false;
    #changes = 0;
    #drawn = "";
    #looks = 0;
    #reading = false;

    constructor(store, app, id) {
        Object.assign(this, { store, app, id });
        this.reason = h("p", { class: "pxd-reason" });
        this.bar = h("div", { class: "pxd-buttons" });
        this.facts = h("dl", { class: "pxd-facts" });
        if (this.job.command !== "prepare") {
            this.chart = new Chart();
            this.gallery = new Gallery(store, id);
        }
        this.text = h("pre", { tabindex: "0" });
        this.log = h("details", { class: "pxd-log", ontoggle: () => this.log.open && this.#change() }, h("summary", {}, t("log")), this.text);
        this.tools = new Tools(store, app, id, (...said) => this.#say(...said));
        this.settings = h("dl", { class: "pxd-facts" });
        this.told = h("details", { class: "pxd-settings", ontoggle: () => this.told.open && this.#readSettings() }, h("summary", {}, t("settings")), this.settings);
        const elements = [this.reason, this.gallery?.element, this.bar, this.facts, this.chart?.element, this.tools.element, this.told, this.log];
        this.element = h("section", { class: "pxd-detail" }, ...elements.filter(Boolean));
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
        this.tools.update(job);
        this.#showWaiting(job);
        const drawn = `${job.state} ${job.attempt} ${this.store.online}`;
        if (this.#drawn && drawn !== this.#drawn) {
            this.chart?.reset();
            this.#change();
        }
        this.#drawn = drawn;
    }

    destroy() {
        clearInterval(this.timer);
        this.chart?.destroy();
        this.gallery?.destroy();
    }

    /** Before it has begun there is no curve and no picture, and no place for them. */
    #showWaiting(job) {
        const waits = ["queued", "preparing"].includes(job.state);
        if (this.chart) this.chart.waiting = waits;
        if (this.gallery) this.gallery.waiting = waits;
    }

    #showFacts(job) {
        const facts = {
            loss: job.loss !== undefined && number(job.loss),
            learning_rate: job.learning_rate !== undefined && number(job.learning_rate),
            rate: job.seconds_per_step !== undefined && tFor(job, "seconds_per_step", { value: number(job.seconds_per_step) }),
            pictures: job.pictures,
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
                { type: "button", class: "pxd-button", "data-action": name, title: tFor(this.job, `${name}_hint`), onclick: () => this.#press(name) },
                h("i", { class: `pi pi-${ICON[name]}`, "aria-hidden": "true" }), tFor(this.job, name)));
        }
        return this.#buttons.get(name);
    }

    async #press(name) {
        const job = this.job;
        if (this.#busy) return;
        if (name === "delete" || name === "kill") {
            const sure = await this.app.extensionManager.dialog.confirm({
                title: tFor(job, `${name}_title`), message: tFor(job, `${name}_message`, { name: job.name }), type: "delete",
            });
            if (!sure) return;
        }
        this.#setBusy(true);
        try {
            if (name === "up" || name === "down") await this.#move(name);
            else await this.store.act(this.id, name);
            if (name === "sample" || name === "save") this.#say("info", t(`asked_${name}`), job.name);
        } catch (error) {
            this.#say("error", t("request_failed"), error.message);
        } finally {
            this.#setBusy(false);
        }
    }

    /** While one request is under way no other is sent. Not `disabled`: that would take the focus from the button. */
    #setBusy(busy) {
        this.#busy = busy;
        for (const button of this.#buttons.values()) button.setAttribute("aria-disabled", busy);
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

    /** Read everything anew, after what is being read now: that may be from before the change. */
    #change() {
        this.#changes += 1;
        this.#read();
    }

    async #read(everything = true) {
        if (this.#reading) return;
        this.#reading = true;
        let seen;
        do {
            everything ||= seen !== undefined;
            seen = this.#changes;
            try {
                await this.chart?.update(this.store, this.id);
                if (everything) await this.gallery?.update();
                if (everything && this.log.open) await this.#readLog();
            } catch {
                // The store notices that the server is gone, and says so; the next look reads again.
            }
            if (this.job) this.#showWaiting(this.job);
        } while (seen !== this.#changes);
        this.#reading = false;
    }

    async #readSettings() {
        const { settings } = await this.store.get(`/${this.id}`).catch(() => ({ settings: {} }));
        this.settings.replaceChildren(...Object.entries(settings).flatMap(([name, value]) =>
            [h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))]));
    }

    async #readLog() {
        const { text } = await this.store.get(`/${this.id}/log`);
        const atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 4;
        setText(this.text, text);
        if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    }
}
