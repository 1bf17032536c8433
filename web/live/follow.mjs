// Nodes that show a job go on showing it: while it runs, the previews behind them are drawn anew.
import { Runner } from "./runner.mjs";

const SWITCH = "follow"; // the widget of these nodes
const STATUS = "PixArtDeltaTrainingStatus", RESULT = "PixArtDeltaTrainedResult";
const JOB = "pixart_delta_job"; // in a node's properties: the job that it showed last
const ACTIVE = ["preparing", "running", "stopping"];

/** Follow the job of a node, if it is one of those that show one. */
export function follow(node, app, api, store) {
    if (![STATUS, RESULT].includes(node.comfyClass)) return;
    const runner = new Runner(app, api, node, SWITCH);
    let seen = null; // of the job, when the previews were drawn last; null: it was not looked at yet
    let asked = null; // the samples after which a result was asked for
    const look = () => {
        const job = jobOf(node, store);
        if (!job || !runner.on) return void (seen = null);
        const result = node.comfyClass === RESULT;
        if (result && job.state === "running" && job.sampled && job.sampled !== asked && job.actions.includes("save")) {
            asked = job.sampled;
            store.act(job.id, "save").catch((error) => console.warn("PixArt-δ:", error));
        }
        const now = JSON.stringify([job.id, result ? job.exported : job.sampled, ACTIVE.includes(job.state)]);
        if (seen !== null && now !== seen) {
            runner.forget();
            runner.run();
        }
        seen = now;
    };
    store.addEventListener("change", look);
    const before = node.onRemoved;
    node.onRemoved = function (...rest) {
        store.removeEventListener("change", look);
        runner.destroy();
        return before?.apply(this, rest);
    };
}

/** The job that a node names, showed last, or would choose by itself: the newest training. */
function jobOf(node, store) {
    const written = node.widgets?.find((each) => each.name === "job")?.value;
    const linked = node.inputs?.find((each) => each.name === "job")?.link != null;
    const named = store.jobs.get(linked ? node.properties?.[JOB] : written);
    if (named || (written && !linked)) return named;
    const trainings = [...store.jobs.values()].filter((job) => job.command !== "prepare" && (node.comfyClass === STATUS || job.export || job.exported));
    return trainings.sort((a, b) => b.created - a.created)[0];
}
