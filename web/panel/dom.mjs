// Elements. Text always goes in as text: nothing that a log, a prompt or a name holds is read as HTML.

/** h("button", { class: "x", onclick: f, "aria-label": "…" }, "text", otherElement) */
export function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children);
    return element;
}

export function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/**
 * Make a parent hold exactly these children, moving none that are in place. The one with the focus never moves, the others
 * do around it: an element that is put in anew loses focus and scroll.
 */
export function arrange(parent, children) {
    for (const child of [...parent.children]) if (!children.includes(child)) child.remove();
    const still = [...parent.children].find((child) => child.contains(document.activeElement));
    children.forEach((child, i) => {
        if (child === still) while (parent.children[i] !== child) parent.append(parent.children[i]);
        else if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
    });
}
