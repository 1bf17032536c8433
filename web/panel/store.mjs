// What the server says about trainings: kept up by websocket events, read anew when the connection comes back.

const BASE = "/pixart_delta";
const ROOT = `${BASE}/jobs`;
const EVENT = "pixart_delta.jobs";
const RETRY = 3000; // ms

export class Store extends EventTarget {
    jobs = new Map();
    online = true;
    loaded = false;

    constructor(api) {
        super();
        this.api = api;
    }

    start() {
        this.api.addEventListener(EVENT, ({ detail }) => this.#merge(detail));
        this.api.addEventListener("reconnected", () => this.reload());
        this.api.addEventListener("reconnecting", () => this.#lost());
        this.reload();
    }

    /** Read the whole list; tries again until the server answers. */
    async reload() {
        clearTimeout(this.retry);
        try {
            const { jobs } = await this.get("");
            const ids = new Set(jobs.map((job) => job.id));
            this.loaded = true;
            this.#setOnline(true);
            this.#merge({ jobs, deleted: [...this.jobs.keys()].filter((id) => !ids.has(id)) });
        } catch {
            this.#lost();
        }
    }

    #lost() {
        this.#setOnline(false);
        clearTimeout(this.retry);
        this.retry = setTimeout(() => this.reload(), RETRY);
    }

    /** Active jobs first, then the queue, then the rest, newest first: as the server sorts them. */
    sorted() {
        const rank = (job) => (["preparing", "running", "stopping"].includes(job.state) ? 0 : job.state === "queued" ? 1 : 2);
        const place = (job) => (rank(job) === 2 ? -job.order : job.order);
        return [...this.jobs.values()].sort((a, b) => rank(a) - rank(b) || place(a) - place(b));
    }

    async get(path) {
        const response = await this.api.fetchApi(ROOT + path, { cache: "no-store" });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        return answer;
    }

    /** What a form for a new training is made of. */
    async form() {
        const response = await this.api.fetchApi(`${BASE}/form`, { cache: "no-store" });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        return answer;
    }

    /** Queue a training from its settings, or only ask what it will take: {job, text}. Throws with the server's message. */
    train(values) {
        return this.post("/form", values);
    }

    async post(path, values) {
        const response = await this.api.fetchApi(BASE + path, {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(values),
        });
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        return answer;
    }

    /** Ask a job to do something. Throws with the server's message. */
    async act(id, action, values = {}) {
        const answer = await this.post(`/jobs/${id}/${action}`, values);
        this.#merge(answer.deleted ? { jobs: [], deleted: [id] } : { jobs: [answer], deleted: [] });
    }

    sampleUrl(id, name) {
        return this.api.apiURL(`${ROOT}/${id}/samples/${name}`);
    }

    #merge({ jobs, deleted }) {
        const earlier = new Map();
        for (const job of jobs) {
            const before = this.jobs.get(job.id);
            this.jobs.set(job.id, job);
            if (before) earlier.set(job.id, before);
            if (before && before.state !== "running" && job.state === "running") {
                this.dispatchEvent(new CustomEvent("began", { detail: job }));
            }
            if (before && before.state !== job.state && ["done", "stopped", "failed"].includes(job.state)) {
                this.dispatchEvent(new CustomEvent("ended", { detail: job }));
            }
        }
        for (const id of deleted) this.jobs.delete(id);
        this.#tell(earlier);
    }

    #setOnline(online) {
        if (this.online === online) return;
        this.online = online;
        this.#tell();
    }

    /** Something has changed. `earlier`: what jobs were before, by their ids. */
    #tell(earlier = new Map()) {
        this.dispatchEvent(new CustomEvent("change", { detail: earlier }));
    }
}
