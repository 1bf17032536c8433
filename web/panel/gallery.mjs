// Grids of samples over time: small ones in a row, one of them large in a dialog.
import { arrange, h, setText } from "./dom.mjs";
import { t } from "./text.mjs";

export class Gallery {
    #samples = [];
    #thumbs = new Map();
    #shown = -1;

    constructor(store, id) {
        this.store = store;
        this.id = id;
        this.note = h("p", { class: "pxd-note" }, t("no_samples"));
        this.row = h("div", { class: "pxd-samples" });
        this.element = h("section", { "aria-label": t("samples") }, h("h3", {}, t("samples")), this.note, this.row);
        this.picture = h("img", { alt: "" });
        this.caption = h("p");
        this.prompts = h("ol");
        const button = (key, by) => h("button", { type: "button", class: "pxd-button", onclick: () => this.#show(this.#shown + by) }, t(key));
        this.dialog = h("dialog", { class: "pxd-dialog", "aria-label": t("samples"), onkeydown: (event) => this.#key(event) },
            this.picture, this.caption, this.prompts,
            h("div", { class: "pxd-buttons" }, button("previous", -1), button("next", 1),
                h("button", { type: "button", class: "pxd-button", onclick: () => this.dialog.close() }, t("close"))));
        document.body.append(this.dialog);
    }

    /** Read which samples there are. Throws when the server does not answer. */
    async update() {
        const { samples } = await this.store.get(`/${this.id}/samples`);
        this.#samples = samples;
        this.note.hidden = samples.length > 0;
        // The newest first; only those are made that are new.
        arrange(this.row, samples.map((sample) => this.#thumb(sample)).reverse());
        const urls = new Set(samples.map((sample) => this.#url(sample)));
        for (const url of this.#thumbs.keys()) if (!urls.has(url)) this.#thumbs.delete(url);
    }

    destroy() {
        this.dialog.remove();
    }

    #thumb(sample) {
        const url = this.#url(sample);
        if (!this.#thumbs.has(url)) {
            const label = t("sample_at", { step: sample.step });
            // One that could not be read, because the server was away, is made anew by the next update.
            const forget = () => this.#thumbs.delete(url);
            // Before its source, so that it is lazy from the start.
            const image = h("img", { loading: "lazy", decoding: "async", src: url, alt: label, onerror: forget });
            const button = h("button", { type: "button", title: label, onclick: () => this.#open(sample.name) },
                image, h("span", {}, String(sample.step)));
            this.#thumbs.set(url, button);
        }
        return this.#thumbs.get(url);
    }

    /** Of its picture; another one when it was drawn anew, as after a retry. */
    #url(sample) {
        return `${this.store.sampleUrl(this.id, sample.name)}?time=${sample.time}`;
    }

    #open(name) {
        this.#show(this.#samples.findIndex((sample) => sample.name === name));
        this.dialog.showModal();
    }

    #show(index) {
        const sample = this.#samples[index];
        if (!sample) return;
        this.#shown = index;
        this.picture.src = this.#url(sample);
        this.picture.alt = t("sample_at", { step: sample.step });
        setText(this.caption, t("sample_at", { step: sample.step }));
        this.prompts.replaceChildren(...sample.prompts.map((prompt) => h("li", {}, prompt)));
    }

    #key(event) {
        // ComfyUI's own shortcuts must not see what is meant for the dialog.
        event.stopPropagation();
        if (event.key === "ArrowLeft") this.#show(this.#shown - 1);
        if (event.key === "ArrowRight") this.#show(this.#shown + 1);
    }
}
