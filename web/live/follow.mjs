// Nodes that show a job go on showing it: while it runs, the previews behind them are drawn anew.
import { Runner } from "./runner.mjs";

const SWITCH = "follow"; // the widget of these nodes
const STATUS = "PixArtDeltaTrainingStatus", RESULT = "PixArtDeltaTrainedResult";
const JOB = "pixart_delta_job"; // in a node's properties: the job that it showed last
const ACTIVE = ["preparing", "running", "stopping"];

/** Follow the job of a node, if it is one of those that show one. */
export function follow(node, app, api, store) {
    if (![STATUS, RESULT].includes(node.comfyClass)) return;
    let id = null; // of the job that is followed
    // The id stands in place of a link to the node that starts the training: to look at a job must not start one.
    const runner = new Runner(app, api, node, SWITCH, { change: (output) => (output[node.id].inputs.job = id) });
    let asked = null; // the samples after which a result was asked for
    const result = node.comfyClass === RESULT;
    // While there is no result yet, a node that loads it could only fail.
    const usable = (job) => !result || job.exported || job.export;
    const shown = (job) => JSON.stringify([result ? job.exported : job.sampled, ACTIVE.includes(job.state)]);
    const look = ({ detail: earlier }) => {
        const job = jobOf(node, store);
        id = job?.id ?? null;
        if (!job || !runner.on) return;
        if (result && job.state === "running" && job.sampled && job.sampled !== asked && job.actions.includes("save")) {
            asked = job.sampled;
            store.act(job.id, "save").catch((error) => console.warn("PixArt-δ:", error));
        }
        // Against what the job was, not what this node saw of it: a node may be made, or switched on, between two changes.
        const before = earlier.get(job.id);
        if (before && usable(job) && shown(before) !== shown(job)) {
            runner.forget();
            runner.run();
        }
    };
    store.addEventListener("change", look);
    const before = node.onRemoved;
    node.onRemoved = function (...rest) {
        store.removeEventListener("change", look);
        runner.destroy();
        return before?.apply(this, rest);
    };
}

/** The job that a node names, showed last, or, with neither a name nor a link, would choose by itself: the newest training. */
function jobOf(node, store) {
    const written = node.widgets?.find((each) => each.name === "job")?.value;
    const link = node.inputs?.find((each) => each.name === "job")?.link;
    const linked = link != null;
    // Linked, it is the job of the node that starts the training; that of an earlier run of this one, if nothing ran since.
    const starter = linked ? node.graph?.getNodeById(node.graph.getLink(link)?.origin_id) : null;
    const named = store.jobs.get(linked ? (starter?.properties?.[JOB] ?? node.properties?.[JOB]) : written);
    if (named || linked || written) return named; // linked to what has started nothing yet: not another one's job
    const list = node.widgets?.find((each) => each.name === "result");
    if (list && list.value !== list.options?.values?.[0]) return undefined; // a certain one was chosen, by a name
    const trainings = [...store.jobs.values()].filter((job) => job.command !== "prepare" && (node.comfyClass === STATUS || job.export || job.exported));
    return trainings.sort((a, b) => b.created - a.created)[0];
}
