// A dialog that fills the window: the samples of one step, of two steps side by side, or a row for each prompt over the steps.
import { h, setText } from "./dom.mjs";
import { t } from "./text.mjs";
import { cells, cut } from "./tiles.mjs";

const MODES = ["one", "two", "rows"];
const MODE = "pixart_delta.viewer"; // in localStorage
const SHOWN = 8; // steps in a row of a prompt, evenly chosen

export class Viewer {
    #samples = [];
    #sides = []; // what is left and right: {figure, picture, caption, slider, at}

    /**
     * @param {(sample) => string} url of a sample's picture
     * @param {() => boolean} hints whether rows of pictures stand below rows of their hints
     */
    constructor(url, hints) {
        Object.assign(this, { url, hints });
        this.modes = Object.fromEntries(MODES.map((mode) => [mode, h("button",
            { type: "button", class: "pxd-button", "data-mode": mode, onclick: () => this.#choose(mode) }, t(`view_${mode}`))]));
        this.#sides = [0, 1].map((side) => this.#side(side));
        this.place = h("div", { class: "pxd-sides" }, ...this.#sides.map((each) => each.figure));
        // Wide grids are larger one above the other.
        const [{ picture }] = this.#sides;
        picture.addEventListener("load", () => (this.place.dataset.stacked = picture.naturalWidth > 1.7 * picture.naturalHeight));
        this.prompts = h("ol");
        this.rows = h("div", { class: "pxd-rows" });
        const step = (key, by) => h("button", { type: "button", class: "pxd-button pxd-step", onclick: () => this.#move(by) }, t(key));
        this.element = h("dialog", { class: "pxd-dialog pxd-viewer", "aria-label": t("samples"), onkeydown: (event) => this.#key(event) },
            h("div", { class: "pxd-buttons" }, ...Object.values(this.modes), h("span", { class: "pxd-space" }), step("previous", -1), step("next", 1),
                h("button", { type: "button", class: "pxd-button", onclick: () => this.element.close() }, t("close"))),
            this.place, this.rows, this.prompts);
        document.body.append(this.element);
        this.#setMode(MODES.includes(localStorage.getItem(MODE)) ? localStorage.getItem(MODE) : "one");
    }

    destroy() {
        this.element.remove();
    }

    /** Which samples there are now; one that is looked at stays. */
    update(samples) {
        this.#samples = samples;
        if (this.element.open) this.#show();
    }

    open(index) {
        this.#sides[0].at = 0; // the right one is what was clicked, the left one is where it came from
        this.#sides[1].at = index;
        if (this.mode !== "two") this.#sides[0].at = index;
        this.element.showModal();
        this.#show();
    }

    #side(side) {
        const picture = h("img", { alt: "" }), caption = h("figcaption");
        const slider = h("input", { type: "range", min: "0", "aria-label": t("step_of_samples"), oninput: () => this.#go(side, Number(slider.value)) });
        return { at: 0, picture, caption, slider, figure: h("figure", {}, picture, h("div", {}, caption, slider)) };
    }

    #choose(mode) {
        // From one picture to two: the first one comes beside it.
        if (mode === "two" && this.mode === "one") [this.#sides[1].at, this.#sides[0].at] = [this.#sides[0].at, 0];
        if (mode === "one" && this.mode === "two") this.#sides[0].at = this.#sides[1].at;
        this.#setMode(mode);
        localStorage.setItem(MODE, mode);
        this.#show();
    }

    #setMode(mode) {
        this.mode = mode;
        this.element.dataset.mode = mode;
        for (const [name, button] of Object.entries(this.modes)) button.setAttribute("aria-pressed", name === mode);
    }

    #go(side, at) {
        if (at < 0 || at >= this.#samples.length) return;
        this.#sides[side].at = at;
        this.#show();
    }

    #move(by) {
        const side = this.mode === "two" ? 1 : 0;
        this.#go(side, this.#sides[side].at + by);
    }

    #show() {
        for (const side of this.#sides) {
            const sample = this.#samples[Math.min(side.at, this.#samples.length - 1)];
            if (!sample) continue;
            const url = this.url(sample);
            if (side.picture.getAttribute("src") !== url) side.picture.src = url;
            side.picture.alt = t("sample_at", { step: sample.step });
            setText(side.caption, t("sample_at", { step: sample.step }));
            side.slider.max = this.#samples.length - 1;
            side.slider.value = side.at;
        }
        const prompts = this.#samples[this.#sides[0].at]?.prompts ?? [];
        this.prompts.replaceChildren(...prompts.map((prompt) => h("li", {}, prompt)));
        if (this.mode === "rows") this.#showRows();
    }

    /** A row for each prompt: its picture at steps from the first to the newest. */
    async #showRows() {
        const last = this.#samples.length - 1, count = Math.min(SHOWN, last + 1);
        const chosen = Array.from({ length: count }, (_, i) => this.#samples[count === 1 ? last : Math.round((i * last) / (count - 1))]);
        const key = JSON.stringify(chosen.map((sample) => this.url(sample)));
        if (this.rows.dataset.shown === key) return;
        this.rows.dataset.shown = key;
        const images = await Promise.all(chosen.map((sample) => load(this.url(sample))));
        if (this.rows.dataset.shown !== key) return; // newer ones are being read
        const prompts = chosen.at(-1).prompts;
        const head = [h("span"), ...chosen.map((sample) => h("span", {}, t("step_only", { step: sample.step })))];
        const rows = prompts.flatMap((prompt, i) => [h("p", {}, prompt), ...images.map((image, j) =>
            image ? cut(image, cells(image, chosen[j].prompts.length, this.hints())[i]) : h("span"))]);
        this.rows.style.gridTemplateColumns = `minmax(120px, 1fr) repeat(${count}, minmax(0, 1.4fr))`;
        this.rows.replaceChildren(...head, ...rows);
    }

    #key(event) {
        // ComfyUI's own shortcuts must not see what is meant for the dialog.
        event.stopPropagation();
        if (event.target.type === "range") return;
        if (event.key === "ArrowLeft") this.#move(-1);
        if (event.key === "ArrowRight") this.#move(1);
    }
}

/** The picture of an address; null where it cannot be read. */
async function load(url) {
    const image = new Image();
    image.src = url;
    return image.decode().then(() => image, () => null);
}
