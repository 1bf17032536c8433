// Registers the sidebar tab and the lines under nodes. Everything below panel/ and vendor/ is .mjs: ComfyUI itself imports
// every .js file here.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";
import { follow } from "./live/follow.mjs";
import { addCanvas } from "./live/widget.mjs";
import { Lines } from "./panel/lines.mjs";
import { Panel } from "./panel/panel.mjs";
import { Store } from "./panel/store.mjs";
import { loadTexts, stateOf, t, tFor } from "./panel/text.mjs";
import { Said } from "./said.mjs";

const store = new Store(api);
const lines = new Lines(app, store);

function addStyle(path) {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(path, import.meta.url).href;
    document.head.append(link);
}

function tellEnd({ detail: job }) {
    const end = stateOf(job);
    app.extensionManager.toast.add({
        severity: { done: "success", stopped: "info", failed: "error" }[end],
        summary: tFor(job, `toast_${end}`),
        detail: job.reason ? `${job.name}: ${job.reason}` : job.name,
        life: end === "failed" ? 20000 : 8000,
    });
}

/**
 * ComfyUI's exchange puts a node into the graph without telling it, so that its texts are not shown, and with the size of
 * the one before, in which it may not fit.
 */
function attendExchange(node) {
    let told = false;
    const before = node.onAdded;
    node.onAdded = function (...rest) {
        told = true;
        return before?.apply(this, rest);
    };
    requestAnimationFrame(() => {
        if (!node.graph) return;
        if (!told) node.onAdded(node.graph);
        const needed = node.computeSize();
        if (needed.every((side, axis) => node.size[axis] >= side)) return;
        node.setSize(needed.map((side, axis) => Math.max(side, node.size[axis])));
        node.setDirtyCanvas(true, true);
    });
}

app.registerExtension({
    name: "pixart_delta.training",
    getCustomWidgets: () => ({
        PIXART_DELTA_DRAWING: (node, name) => addCanvas(node, name, app, api),
    }),
    nodeCreated(node) {
        lines.attend(node);
        follow(node, app, api, store);
        if (node.comfyClass?.startsWith("PixArtDelta")) attendExchange(node);
    },
    afterConfigureGraph() {
        lines.update();
    },
    async setup() {
        new Said(app, api);
        addStyle("./vendor/uplot/uPlot.min.css");
        addStyle("./panel/panel.css");
        await loadTexts(api, app);
        store.addEventListener("ended", tellEnd);
        store.start();
        let panel = null;
        app.extensionManager.registerSidebarTab({
            id: "pixart_delta.training",
            icon: "pi pi-chart-line",
            title: t("title"),
            tooltip: t("tooltip"),
            type: "custom",
            render(element) {
                panel?.destroy();
                panel = new Panel(element, store, app);
            },
            destroy() {
                panel?.destroy();
                panel = null;
            },
        });
    },
});
