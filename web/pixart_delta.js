// Registers the sidebar tab. Everything below panel/ and vendor/ is .mjs: ComfyUI itself imports every .js file here.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";
import { Panel } from "./panel/panel.mjs";
import { Store } from "./panel/store.mjs";
import { loadTexts, t } from "./panel/text.mjs";

function addStyle(path) {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(path, import.meta.url).href;
    document.head.append(link);
}

app.registerExtension({
    name: "pixart_delta.training",
    async setup() {
        addStyle("./vendor/uplot/uPlot.min.css");
        addStyle("./panel/panel.css");
        await loadTexts(api, app);
        const store = new Store(api);
        store.addEventListener("ended", ({ detail: job }) => {
            const done = job.state === "done";
            app.extensionManager.toast.add({
                severity: done ? "success" : "error",
                summary: t(done ? "toast_done" : "toast_failed"),
                detail: job.reason ? `${job.name}: ${job.reason}` : job.name,
                life: done ? 8000 : 20000,
            });
        });
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
