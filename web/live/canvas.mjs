// A sheet to draw on, as a node's widget: pen, eraser, their width, undo, clear, and the picture that came of it below the
// lines. Its value is a PNG in a data: address.
import { h } from "../panel/dom.mjs";
import { t } from "../panel/text.mjs";

const SIDE = 256; // px of the drawing; the node gives it out at any size
const INK = "#000";
const STEPS = 30; // that undo goes back

export class Sheet {
    #undo = [];
    #erase = false;
    #last = null; // point of the stroke under way
    #value = "";
    #loads = 0;
    #shows = 0;

    /**
     * @param {{draw: () => void, end: () => void}} tell called while a stroke goes on (its value is then not yet read
     *     anew: see `read`), and after it, when `value` holds it.
     */
    constructor(tell) {
        this.tell = tell;
        this.canvas = h("canvas", { width: SIDE, height: SIDE, class: "pxd-sheet", "aria-label": t("live_canvas"), tabindex: "0" });
        this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
        this.width = h("input", { type: "range", min: "1", max: "40", value: "5", title: t("live_width"), "aria-label": t("live_width") });
        this.tools = { pen: this.#button("live_pen", "pencil", () => this.#choose(false)), erase: this.#button("live_eraser", "eraser", () => this.#choose(true)) };
        this.under = this.#button("live_under", "image", () => this.#setUnder(this.under.getAttribute("aria-pressed") !== "true"));
        this.element = h("div", { class: "pxd-live" }, this.canvas, h("div", { class: "pxd-tools" },
            this.tools.pen, this.tools.erase, this.width, this.under, this.#button("live_undo", "undo", () => this.#back()), this.#button("live_clear", "trash", () => this.#clear())));
        this.#choose(false);
        this.#setUnder(true);
        // The graph below would take these for a drag of the node, and keys for its own shortcuts.
        for (const name of ["pointerdown", "pointermove", "pointerup", "wheel", "contextmenu"]) this.element.addEventListener(name, (event) => event.stopPropagation());
        this.canvas.addEventListener("pointerdown", (event) => this.#begin(event));
        this.canvas.addEventListener("pointermove", (event) => this.#go(event));
        for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, (event) => this.#end(event));
    }

    /** What was drawn by the end of the last stroke; "" for a blank sheet. */
    get value() {
        return this.#value;
    }

    /** Put a drawing on the sheet: one that was saved, or that ComfyUI's own undo brings back. */
    set value(text) {
        if (text === this.#value) return;
        this.#value = text ?? "";
        this.#undo = [];
        this.#paint(this.#value);
    }

    /** A picture that came of the drawing: shown below the lines, the last one until the next is ready. */
    async show(url) {
        const show = ++this.#shows, image = new Image();
        image.src = url;
        await image.decode().catch(() => {});
        if (show === this.#shows && image.naturalWidth) this.canvas.style.setProperty("--pxd-under", `url("${image.src}")`);
    }

    #setUnder(on) {
        this.under.setAttribute("aria-pressed", on);
        this.canvas.dataset.under = on;
    }

    /** The drawing as it is now, in the midst of a stroke too. */
    read() {
        this.#value = this.#blank() ? "" : this.canvas.toDataURL("image/png");
        return this.#value;
    }

    get drawing() {
        return this.#last !== null;
    }

    #button(key, icon, press) {
        return h("button", { type: "button", class: "pxd-button", title: t(key), "aria-label": t(key), "data-tool": key, onclick: press }, h("i", { class: `pi pi-${icon}`, "aria-hidden": "true" }));
    }

    #choose(erase) {
        this.#erase = erase;
        this.tools.pen.setAttribute("aria-pressed", !erase);
        this.tools.erase.setAttribute("aria-pressed", erase);
    }

    #point(event) {
        const box = this.canvas.getBoundingClientRect();
        return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
    }

    #begin(event) {
        if (event.button !== 0) return;
        event.preventDefault();
        this.#remember();
        this.canvas.setPointerCapture(event.pointerId);
        this.pen.globalCompositeOperation = this.#erase ? "destination-out" : "source-over";
        this.pen.lineCap = this.pen.lineJoin = "round";
        this.pen.strokeStyle = INK;
        this.#last = this.#point(event);
        this.#line(event, this.#last); // a tap leaves a dot
    }

    #go(event) {
        if (!this.#last) return;
        for (const each of event.getCoalescedEvents?.() ?? [event]) this.#line(each, this.#point(each));
        this.tell.draw();
    }

    #line(event, to) {
        // A pen's pressure is 0 … 1, a mouse's always 0.5.
        this.pen.lineWidth = Number(this.width.value) * (event.pointerType === "pen" ? 2 * event.pressure : 1);
        this.pen.beginPath();
        this.pen.moveTo(...this.#last);
        this.pen.lineTo(...to);
        this.pen.stroke();
        this.#last = to;
    }

    #end() {
        if (!this.#last) return;
        this.#last = null;
        this.read();
        this.tell.end();
    }

    #blank() {
        return !this.pen.getImageData(0, 0, SIDE, SIDE).data.some((value, i) => i % 4 === 3 && value > 0);
    }

    #remember() {
        this.#undo.push(this.#value);
        if (this.#undo.length > STEPS) this.#undo.shift();
    }

    async #back() {
        if (!this.#undo.length) return;
        this.#value = this.#undo.pop();
        await this.#paint(this.#value);
        this.tell.end();
    }

    #clear() {
        if (!this.#value) return;
        this.#remember();
        this.#value = "";
        this.#paint("");
        this.tell.end();
    }

    async #paint(text) {
        const load = ++this.#loads; // a later one may be faster
        const image = new Image();
        if (text) {
            image.src = text;
            await image.decode().catch(() => {}); // what is no picture leaves the sheet blank; the node says why
        }
        if (load !== this.#loads) return;
        this.pen.globalCompositeOperation = "source-over";
        this.pen.clearRect(0, 0, SIDE, SIDE);
        if (image.naturalWidth) this.pen.drawImage(image, 0, 0, SIDE, SIDE);
    }
}
