// What does a JSON schema of the API's document ask for? Its many ways to say so, as one plain shape.

/** The schema of a call's body, and the components that it names. */
export function bodySchema(document, path) {
  const body = document.paths[path].post.requestBody.content["application/json"].schema;
  return { schema: resolved(body, document.components.schemas), components: document.components.schemas };
}

/** Give `{kind, description, isNullable, fallback}` (a text is never null: it may read so) with, by kind: `properties` of an object; `tag` and `kinds` of a choice;
 * `options` of what has few values; `isNumbers` and `isLines` of a list. What fits no field of its own is `json`. */
export function shapeOf(schema, components) {
  const outer = resolved(schema, components);
  const variants = (outer.anyOf ?? []).map((one) => resolved(one, components));
  const inner = variants.find((one) => one.type !== "null") ?? outer;
  const common = {
    description: outer.description ?? inner.description,
    fallback: outer.default,
  };
  const found = kindOf(inner, outer, components);
  return { ...common, ...found, isNullable: found.kind !== "string" && variants.some((one) => one.type === "null") };
}

function kindOf(inner, outer, components) {
  const options = inner.enum ?? (inner.const === undefined ? outer.examples : [inner.const]);
  if (inner.oneOf && inner.discriminator) return choiceOf(inner, components);
  if (inner.properties) return { kind: "object", properties: inner.properties };
  if (inner.type === "boolean") return { kind: "boolean", options: ["true", "false"] };
  if (inner.type === "string") return { kind: "string", options };
  if (inner.type === "array") return listOf(resolved(inner.items, components));
  return { kind: inner.type === "integer" || inner.type === "number" ? inner.type : "json" };
}

function choiceOf({ discriminator }, components) {
  const kinds = Object.entries(discriminator.mapping).map(([tag, ref]) => [tag, resolved({ $ref: ref }, components)]);
  return { kind: "choice", tag: discriminator.propertyName, kinds: Object.fromEntries(kinds) };
}

function listOf(item) {
  const isNumbers = item.type === "integer" || item.type === "number";
  if (isNumbers) return { kind: "list", isNumbers };
  return item.type === "string" ? { kind: "list", isLines: (item.maxLength ?? 0) > 200 } : { kind: "json" };
}

function resolved(schema, components) {
  if (!schema.$ref) return schema;
  const { $ref, ...beside } = schema;
  return { ...components[$ref.split("/").at(-1)], ...beside };
}
