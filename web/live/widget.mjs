// The canvas of PixArt-δ Live Canvas as a widget of its node, and the runs that follow the drawing.
import { Quiet } from "./quiet.mjs";
import { Runner } from "./runner.mjs";
import { Sheet } from "./canvas.mjs";

const KIND = "PIXART_DELTA_DRAWING"; // nobody else's: Nodes 2.0 and App mode then show the element itself
const HEIGHT = 280; // px

let quiet = null; // one connection for all canvases of the page

export function addCanvas(node, name, app, api) {
    quiet ??= new Quiet(api);
    const runner = new Runner(app, api, node, "live", { quiet });
    // Other inputs: the editor says that something changed, and whether it matters shows in the prompt.
    const changed = () => runner.run();
    api.addEventListener("graphChanged", changed);
    // App mode clears its place for pictures when a run begins; the sheet keeps the last one.
    const shown = ({ detail }) => {
        const [file] = detail.output?.images ?? [];
        if (file && runner.previews().at(-1) === String(detail.node)) sheet.show(api.apiURL(`/view?${new URLSearchParams(file)}`));
    };
    api.addEventListener("executed", shown);
    const sheet = new Sheet({ draw: () => runner.quick && runner.run(), end: () => ended() });
    const widget = node.addDOMWidget(name, KIND, sheet.element, {
        getValue: () => sheet.value,
        setValue: (value) => (sheet.value = value),
        getMinHeight: () => HEIGHT,
        hideOnZoom: false,
    });
    // In the midst of a stroke the prompt takes what is there; the workflow keeps finished strokes.
    widget.serializeValue = () => (sheet.drawing ? sheet.read() : sheet.value);
    const ended = () => {
        widget.callback?.(sheet.value);
        runner.run(true);
    };
    const before = node.onRemoved;
    node.onRemoved = function (...rest) {
        api.removeEventListener("graphChanged", changed);
        api.removeEventListener("executed", shown);
        runner.destroy();
        return before?.apply(this, rest);
    };
    return { widget };
}
