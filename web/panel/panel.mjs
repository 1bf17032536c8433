// The sidebar tab: a list of trainings, the chosen one opened.
import { Detail } from "./detail.mjs";
import { arrange, h, setText } from "./dom.mjs";
import { summary, t } from "./text.mjs";

const CHOSEN = "pixart_delta.chosen"; // in sessionStorage: a reload opens the same one
const NONE = ""; // chosen by closing the open one; null: nothing was chosen yet, and the first one opens

export class Panel {
    #rows = new Map();

    constructor(element, store, app) {
        Object.assign(this, { store, app });
        this.offline = h("p", { class: "pxd-offline", role: "status" }, t("offline"));
        this.empty = h("p", { class: "pxd-note" }, t("empty"));
        this.list = h("ul", { "aria-label": t("jobs"), onkeydown: (event) => this.#key(event) });
        this.element = h("div", { class: "pxd-panel" }, h("h2", {}, t("title")), this.offline, this.empty, this.list);
        element.replaceChildren(this.element);
        this.chosen = sessionStorage.getItem(CHOSEN);
        this.show = () => this.#update();
        store.addEventListener("change", this.show);
        store.reload();
        this.#update();
    }

    destroy() {
        this.store.removeEventListener("change", this.show);
        this.detail?.destroy();
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
        arrange(this.list, jobs.map((job) => this.#row(job).item));
        this.detail?.update();
        if (place && !this.list.contains(document.activeElement)) this.#focus(place);
    }

    /** The job that holds the keyboard's focus and its place in the list; null without the focus. */
    #focusedPlace() {
        const items = [...this.list.children];
        const at = items.findIndex((item) => item.contains(document.activeElement));
        return at < 0 ? null : { id: items[at].dataset.job, at };
    }

    /** What had the focus is gone, a button or a whole job: to the head of that job, or of the one now in its place. */
    #focus({ id, at }) {
        const item = this.#rows.get(id)?.item ?? [...this.list.children].at(Math.min(at, this.list.children.length - 1));
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
        setText(row.state, t(job.state));
        row.state.dataset.state = job.state;
        setText(row.text, summary(job));
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
