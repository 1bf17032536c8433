// Loss and learning rate over steps, drawn by uPlot.
import uPlot from "../vendor/uplot/uPlot.mjs";
import { h } from "./dom.mjs";
import { number, t } from "./text.mjs";

const HEIGHT = 220;
const GRID = "#8885";
// Columns of the metrics: the loss on what is held out, over all timesteps and by four bands of them, the least noisy first.
const HELD_OUT = ["validation", "validation_1", "validation_2", "validation_3", "validation_4"];
const BANDS = ["#b9a6f5", "#9a6be8", "#cf4fb9", "#d63a4a"]; // their colours, of which no other line has one like them
const FEW = 24; // looks at what is held out: so many are dots, too; one alone would be no line
const NOTHING = () => [[], [], [], ...HELD_OUT.map(() => [])]; // steps, loss, learning rate, and those
const MOST = 3000; // points; with more the whole is read anew, thinned by the server

export class Chart {
    element = h("figure", { class: "pxd-chart", "aria-label": t("chart") });
    #data = NOTHING();
    #banded = false; // whether the plot has lines of the bands
    #generation = 0;
    #logarithmic = localStorage.getItem("pixart_delta.logarithmic") === "1";

    constructor() {
        this.note = h("p", { class: "pxd-note" }, t("no_metrics"));
        const box = h("input", { type: "checkbox", onchange: () => this.#setLogarithmic(box.checked) });
        box.checked = this.#logarithmic;
        this.place = h("div");
        this.element.append(this.note, this.place, h("label", { class: "pxd-toggle" }, box, t("logarithmic")));
        this.observer = new ResizeObserver(() => this.#resize());
        this.observer.observe(this.element);
    }

    /** Read new lines of a job. Throws when the server does not answer. */
    async update(store, id) {
        const steps = this.#data[0];
        const since = steps.length && steps.length < MOST ? steps.at(-1) : -1;
        const generation = this.#generation;
        const { columns } = await store.get(`/${id}/metrics?since=${since}`);
        // Forgotten while the server answered: these would be the tail of another curve.
        if (generation !== this.#generation) return;
        if (!columns.step) {
            if (since < 0) this.#clear();
            return;
        }
        const empty = columns.step.map(() => null);
        const fresh = [columns.step, columns.loss ?? empty, columns.learning_rate ?? empty, ...HELD_OUT.map((name) => columns[name] ?? empty)];
        this.#data = since < 0 ? fresh : this.#data.map((old, i) => [...old, ...fresh[i]]);
        this.#draw();
    }

    /** Forget what was read: a resumed run takes its last steps again. The old curve is seen until the new one is read. */
    reset() {
        this.#generation += 1;
        this.#data = NOTHING();
    }

    destroy() {
        this.observer.disconnect();
        this.plot?.destroy();
    }

    /** No curve: a run that began anew has no step yet. */
    #clear() {
        this.#forgetPlot();
        this.note.hidden = false;
        this.element.dataset.points = 0;
    }

    #draw() {
        this.note.hidden = true;
        const [steps, losses, rates, all, ...bands] = this.#data;
        const banded = bands.some((values) => values.some((value) => value !== null));
        const held = (banded ? [all, ...bands] : [all]).map((values) => this.#positive(values));
        const data = [steps, this.#positive(losses), this.#positive(smooth(losses)), rates, ...held];
        if (banded !== this.#banded) this.#forgetPlot();
        this.#banded = banded;
        if (this.plot) this.plot.setData(data);
        else this.plot = new uPlot(this.#options(), data, this.place);
        this.element.dataset.points = this.#data[0].length;
    }

    /** Nothing is drawn yet and nothing will be soon: then there is nothing to say. */
    set waiting(waits) {
        this.element.hidden = waits && !this.#data[0].length;
    }

    #positive(values) {
        return this.#logarithmic ? values.map((value) => (value > 0 ? value : null)) : values;
    }

    #setLogarithmic(on) {
        this.#logarithmic = on;
        localStorage.setItem("pixart_delta.logarithmic", on ? "1" : "0");
        this.#forgetPlot();
        if (this.#data[0].length) this.#draw();
    }

    #forgetPlot() {
        this.plot?.destroy();
        this.plot = null;
    }

    #resize() {
        const width = this.element.clientWidth;
        if (this.plot && width > 0) this.plot.setSize({ width, height: HEIGHT });
    }

    #options() {
        // Colours are asked for at every drawing: the theme may change.
        const colour = (name) => getComputedStyle(this.element).getPropertyValue(name);
        const axis = (scale, side, size) => ({
            scale, side, size, font: "11px system-ui", labelFont: "11px system-ui",
            stroke: () => colour("--pxd-dim"),
            grid: { show: side !== 1, stroke: GRID, width: 1 },
            ticks: { stroke: GRID, width: 1 },
            values: (_plot, values) => values.map((value) => (value === null ? "" : number(value))),
        });
        const value = (_plot, found) => number(found);
        // Most steps have no look at what is held out: then the last one before counts.
        const held = {
            scale: "loss", spanGaps: true, value: (plot, found, series, at) => number(found ?? before(plot.data[series], at)),
            points: { show: (plot, series) => plot.data[series].filter((each) => each !== null).length <= FEW, size: 4 },
        };
        return {
            width: Math.max(200, this.element.clientWidth),
            height: HEIGHT,
            cursor: { drag: { x: true, y: false } },
            scales: { x: { time: false }, loss: { distr: this.#logarithmic ? 3 : 1 }, rate: {} },
            series: [
                { label: t("steps"), value },
                { label: t("loss"), scale: "loss", stroke: () => colour("--pxd-faint"), width: 1, spanGaps: true, value },
                { label: t("smoothed"), scale: "loss", stroke: () => colour("--pxd-loss"), width: 2, spanGaps: true, value },
                { label: t("learning_rate"), scale: "rate", stroke: () => colour("--pxd-rate"), width: 1, dash: [4, 3], value },
                { ...held, label: t("validation"), stroke: () => colour("--pxd-validation"), width: 1.5 },
                ...(this.#banded ? BANDS : []).map((stroke, i) => (
                    { ...held, label: t("validation_band", { first: 250 * i, last: 250 * i + 249 }), stroke, width: 1 }
                )),
            ],
            axes: [axis("x", 2, 28), axis("loss", 3, 48), axis("rate", 1, 56)],
        };
    }
}

/** The last number at a place of a column or before it; null where there is none. */
function before(column, at) {
    return at === null ? null : (column.slice(0, at + 1).findLast((each) => each !== null) ?? null);
}

/** An average over the last values, a twenty-fifth of the whole curve: what the trend is, without the noise of batches. */
function smooth(values) {
    const keep = 1 - 2 / (1 + Math.max(3, values.length / 25));
    let sum = 0, weight = 0;
    return values.map((value) => {
        if (value === null) return null;
        sum = keep * sum + value;
        weight = keep * weight + 1;
        return sum / weight;
    });
}
