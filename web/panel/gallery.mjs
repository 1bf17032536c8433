// Grids of samples over time: the newest one large, all of them small in a row, and the viewer that fills the window.
import { arrange, h, setText } from "./dom.mjs";
import { t } from "./text.mjs";
import { cells, cut } from "./tiles.mjs";
import { Viewer } from "./viewer.mjs";

export class Gallery {
    #samples = [];
    #thumbs = new Map();
    #at = null; // name of the sample that was chosen with the slider; null: the newest

    constructor(store, id) {
        this.store = store;
        this.id = id;
        this.note = h("p", { class: "pxd-note" }, t("no_samples"));
        this.row = h("div", { class: "pxd-samples" });
        this.picture = h("img", { alt: "", decoding: "async", onload: () => this.#tile() });
        this.tiles = h("div", { class: "pxd-tiles", hidden: true });
        this.caption = h("figcaption");
        this.slider = h("input", { type: "range", min: "0", "aria-label": t("step_of_samples"), oninput: () => this.#slide() });
        this.large = h("figure", { class: "pxd-newest", hidden: true },
            h("button", { type: "button", title: t("enlarge"), onclick: () => this.#open(this.#current()) }, this.picture, this.tiles), this.caption, this.slider);
        this.element = h("section", { "aria-label": t("samples") }, h("h3", {}, t("samples")), this.note, this.large, this.row);
        this.viewer = new Viewer((sample) => this.#url(sample), () => this.#hints());
    }

    /** Read which samples there are. Throws when the server does not answer. */
    async update() {
        const { samples } = await this.store.get(`/${this.id}/samples`);
        this.#samples = samples;
        this.note.hidden = samples.length > 0;
        this.large.hidden = samples.length === 0;
        // The newest first; only those are made that are new.
        arrange(this.row, samples.map((sample) => this.#thumb(sample)).reverse());
        const urls = new Set(samples.map((sample) => this.#url(sample)));
        for (const url of this.#thumbs.keys()) if (!urls.has(url)) this.#thumbs.delete(url);
        this.#show();
        this.viewer.update(samples);
    }

    /** Nothing was drawn yet and nothing will be soon: then there is nothing to say. */
    set waiting(waits) {
        this.element.hidden = waits && this.#samples.length === 0;
    }

    destroy() {
        this.viewer.destroy();
    }

    #current() {
        return this.#samples.find((sample) => sample.name === this.#at) ?? this.#samples.at(-1);
    }

    #show() {
        const sample = this.#current();
        if (!sample) return;
        const url = this.#url(sample);
        if (this.picture.getAttribute("src") !== url) this.picture.src = url;
        this.picture.alt = t("sample_at", { step: sample.step });
        setText(this.caption, t("sample_at", { step: sample.step }));
        this.slider.hidden = this.#samples.length < 2;
        this.slider.max = this.#samples.length - 1;
        this.slider.value = this.#samples.indexOf(sample);
    }

    #hints() {
        return this.store.jobs.get(this.id)?.command === "controlnet";
    }

    /** Four pictures in a row are small in a sidebar: two in a row then. */
    #tile() {
        const prompts = this.#current()?.prompts.length ?? 0;
        const wide = prompts > 2 && this.picture.naturalWidth > 1.7 * this.picture.naturalHeight;
        this.picture.hidden = wide;
        this.tiles.hidden = !wide;
        this.tiles.replaceChildren(...(wide ? cells(this.picture, prompts, this.#hints()).map((cell) => cut(this.picture, cell)) : []));
    }

    #slide() {
        const at = Number(this.slider.value);
        this.#at = at === this.#samples.length - 1 ? null : this.#samples[at].name;
        this.#show();
    }

    #thumb(sample) {
        const url = this.#url(sample);
        if (!this.#thumbs.has(url)) {
            const label = t("sample_at", { step: sample.step });
            // One that could not be read, because the server was away, is made anew by the next update.
            const forget = () => this.#thumbs.delete(url);
            // Before its source, so that it is lazy from the start.
            const image = h("img", { loading: "lazy", decoding: "async", src: url, alt: label, onerror: forget });
            const button = h("button", { type: "button", title: label, onclick: () => this.#open(sample) },
                image, h("span", {}, String(sample.step)));
            this.#thumbs.set(url, button);
        }
        return this.#thumbs.get(url);
    }

    /** Of its picture; another one when it was drawn anew, as after a retry. */
    #url(sample) {
        return `${this.store.sampleUrl(this.id, sample.name)}?time=${sample.time}`;
    }

    #open(sample) {
        this.viewer.open(this.#samples.findIndex((each) => each.name === sample.name));
    }
}
