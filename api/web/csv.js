// How is a table read that came as CSV (RFC 4180)?

/** Give the rows as objects by the names in the first line; all values are texts. */
export function readCsv(text) {
  const [names, ...rows] = recordsOf(text);
  return rows.map((row) => Object.fromEntries(names.map((name, i) => [name, row[i] ?? ""])));
}

function recordsOf(text) {
  const records = [];
  const cell = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/y;
  let record = [];
  while (cell.lastIndex < text.length) {
    const found = cell.exec(text);
    if (found === null) throw new SyntaxError("this is no CSV");
    record.push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (found[3] === ",") continue;
    records.push(record);
    record = [];
  }
  return record.length ? [...records, [...record, ""]] : records;
}
