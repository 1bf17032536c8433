// The sidebar tab: trainings, then datasets; the chosen one opened.
import { Detail } from "./detail.mjs";
import { arrange, h, setText } from "./dom.mjs";
import { Form } from "./form.mjs";
import { stateOf, summary, t } from "./text.mjs";

const CHOSEN = "pixart_delta.chosen"; // in sessionStorage: a reload opens the same one
const NONE = ""; // chosen by closing the open one; null: nothing was chosen yet, and the first one opens

export class Panel {
    #rows = new Map();

    constructor(element, store, app) {
        Object.assign(this, { store, app });
        this.offline = h("p", { class: "pxd-offline", role: "status" }, t("offline"));
        this.empty = h("p", { class: "pxd-note" }, t("empty"));
        this.trainings = h("ul", { "aria-label": t("jobs") });
        this.datasets = h("ul", { "aria-label": t("datasets") });
        this.heading = h("h3", {}, t("datasets"));
        this.list = h("div", { onkeydown: (event) => this.#key(event) }, this.trainings, this.heading, this.datasets);
        this.form = new Form(store, (id) => this.#openNew(id));
        const add = h("button", { type: "button", class: "pxd-button", "data-form": "new", onclick: () => this.#openForm() },
            h("i", { class: "pi pi-plus", "aria-hidden": "true" }), t("new_training"));
        this.element = h("div", { class: "pxd-panel" }, h("header", {}, h("h2", {}, t("title")), add), this.offline, this.empty, this.list);
        // Of a job's button that duplicates it with changes.
        this.element.addEventListener("pxd-form", ({ detail }) => this.#openForm(detail.job, detail.name));
        element.replaceChildren(this.element);
        this.chosen = sessionStorage.getItem(CHOSEN);
        this.show = () => this.#update();
        this.began = ({ detail }) => this.#follow(detail);
        store.addEventListener("change", this.show);
        store.addEventListener("began", this.began);
        store.reload();
        this.#update();
    }

    destroy() {
        this.store.removeEventListener("change", this.show);
        this.store.removeEventListener("began", this.began);
        this.detail?.destroy();
        this.form.destroy();
        this.element.remove();
    }

    #update() {
        const jobs = this.store.sorted();
        this.offline.hidden = this.store.online;
        this.empty.hidden = jobs.length > 0 || !this.store.loaded;
        const place = this.#focusedPlace();
        // Before the list is read nothing is known: what was chosen before a reload stays chosen.
        if (this.store.loaded && this.chosen !== NONE && !this.store.jobs.has(this.chosen)) this.#choose(jobs[0]?.id ?? null);
        else if (!this.detail && this.store.jobs.has(this.chosen)) this.#choose(this.chosen);
        for (const id of this.#rows.keys()) if (!this.store.jobs.has(id)) this.#rows.delete(id);
        const kinds = [[this.trainings, false], [this.datasets, true]];
        for (const [list, made] of kinds) arrange(list, jobs.filter((job) => (job.command === "prepare") === made).map((job) => this.#row(job).item));
        this.heading.hidden = this.datasets.children.length === 0;
        this.detail?.update();
        if (place && !this.list.contains(document.activeElement)) this.#focus(place);
    }

    #items() {
        return [...this.list.querySelectorAll("li[data-job]")];
    }

    async #openForm(job, name) {
        try {
            await this.form.open(job, name);
        } catch (error) {
            this.app.extensionManager.toast.add({ severity: "error", summary: t("request_failed"), detail: error.message, life: 10000 });
        }
    }

    async #openNew(id) {
        await this.store.reload();
        this.#choose(id);
        this.#update();
    }

    /** A job that has begun to run opens itself, unless somebody is busy with another one. */
    #follow(job) {
        if (this.detail?.element.contains(document.activeElement) || document.querySelector("dialog[open]")) return;
        if (job.command === "prepare" && this.detail) return;
        this.#choose(job.id);
    }

    /** The job that holds the keyboard's focus and its place in the list; null without the focus. */
    #focusedPlace() {
        const items = this.#items();
        const at = items.findIndex((item) => item.contains(document.activeElement));
        return at < 0 ? null : { id: items[at].dataset.job, at };
    }

    /** What had the focus is gone, a button or a whole job: to the head of that job, or of the one now in its place. */
    #focus({ id, at }) {
        const item = this.#rows.get(id)?.item ?? this.#items().at(Math.min(at, this.#items().length - 1));
        item?.querySelector(".pxd-row").focus();
    }

    #choose(id) {
        this.chosen = id;
        if (id === null) sessionStorage.removeItem(CHOSEN);
        else sessionStorage.setItem(CHOSEN, id);
        this.detail?.destroy();
        this.detail?.element.remove();
        this.detail = this.store.jobs.has(id) ? new Detail(this.store, this.app, id) : null;
    }

    #row(job) {
        let row = this.#rows.get(job.id);
        if (!row) {
            row = { name: h("span", { class: "pxd-name" }), state: h("span", { class: "pxd-state" }), bar: h("progress", { "aria-label": t("progress") }), text: h("span", { class: "pxd-summary" }) };
            row.button = h("button", { type: "button", class: "pxd-row", onclick: () => this.#press(job.id) }, row.name, row.state, row.bar, row.text);
            row.item = h("li", { "data-job": job.id }, row.button);
            this.#rows.set(job.id, row);
        }
        setText(row.name, job.name);
        setText(row.state, t(stateOf(job)));
        row.state.dataset.state = job.state;
        row.state.dataset.shown = stateOf(job);
        setText(row.text, summary(job, job.id !== this.chosen)); // the open one says it below
        row.bar.hidden = job.steps === undefined;
        row.bar.max = job.steps ?? 1;
        row.bar.value = job.step ?? 0;
        const open = job.id === this.chosen;
        row.button.setAttribute("aria-expanded", open);
        if (open && this.detail && this.detail.element.parentElement !== row.item) row.item.append(this.detail.element);
        return row;
    }

    /** Open a job, or close the open one. */
    #press(id) {
        this.#choose(id === this.chosen ? NONE : id);
        this.#update();
    }

    #key(event) {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        const buttons = [...this.list.querySelectorAll(".pxd-row")];
        const at = buttons.indexOf(event.target);
        if (!step || at < 0) return;
        event.preventDefault();
        event.stopPropagation();
        buttons[at + step]?.focus();
    }
}
