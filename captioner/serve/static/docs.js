// The page at /docs: the OpenAPI document, for people.

const element = (id) => document.getElementById(id);

function made(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function table(heads, rows) {
  const cells = (kind, texts) => made("tr", {}, ...texts.map((textContent) => made(kind, { textContent })));
  const body = made("tbody", {}, ...rows.map((texts) => cells("td", texts)));
  const scroll = made("div", { className: "scroll", tabIndex: 0 }, made("table", {}, made("thead", {}, cells("th", heads)), body));
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", heads[0]);
  return scroll;
}

function kindOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kindOf).filter((kind) => kind !== "null").join(" or ");
  return schema.type === "array" ? `list of ${kindOf(schema.items)}` : (schema.format ?? schema.type ?? "any");
}

function boundsOf(schema) {
  const [low, above, high] = ["minimum", "exclusiveMinimum", "maximum"].map(
    (name) => schema[name] ?? schema.anyOf?.[0]?.[name],
  );
  return [
    low !== undefined ? `at least ${low}` : "",
    above !== undefined ? `above ${above}` : "",
    high !== undefined ? `at most ${high}` : "",
  ]
    .filter(Boolean)
    .join(", ");
}

function operation(path, method, about, schemas) {
  const parts = [made("h2", { textContent: `${method.toUpperCase()} ${path}` }), made("p", { textContent: about.summary })];
  if (about.description) parts.push(made("p", { textContent: about.description }));
  for (const [type, { schema }] of Object.entries(about.requestBody?.content ?? {})) {
    const { properties } = schemas[schema.$ref.split("/").pop()];
    const rows = Object.entries(properties).map(([name, one]) => [name, kindOf(one), boundsOf(one), one.description ?? ""]);
    parts.push(table([type, "kind", "bounds", "meaning"], rows));
  }
  const answers = Object.entries(about.responses).map(([status, { description }]) => [status, description]);
  parts.push(table(["status", "meaning"], answers));
  return made("section", { className: "operation" }, ...parts);
}

const specification = await (await fetch("/openapi.json")).json();
element("description").textContent = specification.info.description.replaceAll("`", "");
element("operations").append(
  ...Object.entries(specification.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, about]) => operation(path, method, about, specification.components.schemas)),
  ),
);
