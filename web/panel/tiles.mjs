// Single pictures out of a grid of samples, laid out as training/sampling.py does: rows of four, gaps of 4 px, each row below
// its hints where there are some.
import { h } from "./dom.mjs";

const COLUMNS = 4, GAP = 4;

/** Where the pictures of `count` prompts are in a grid: [{x, y, width, height}]. */
export function cells(image, count, hints) {
    const columns = Math.min(COLUMNS, count), rows = Math.ceil(count / COLUMNS) * (hints ? 2 : 1);
    const width = (image.naturalWidth + GAP) / columns - GAP, height = (image.naturalHeight + GAP) / rows - GAP;
    return Array.from({ length: count }, (_, i) => {
        const row = Math.floor(i / COLUMNS) * (hints ? 2 : 1) + (hints ? 1 : 0);
        return { x: (i % COLUMNS) * (width + GAP), y: row * (height + GAP), width, height };
    });
}

/** A cell of a grid as a picture of its own. */
export function cut(image, cell) {
    const canvas = h("canvas", { width: Math.round(cell?.width ?? 1), height: Math.round(cell?.height ?? 1) });
    if (cell) canvas.getContext("2d").drawImage(image, cell.x, cell.y, cell.width, cell.height, 0, 0, canvas.width, canvas.height);
    return canvas;
}
