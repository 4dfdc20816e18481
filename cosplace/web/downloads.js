// Answers as files: GeoJSON, GPX, and the XMP sidecar of a photo.  Nothing is sent; the browser saves the text.
import { hasPosition, headline, isCalibrated } from "./text.js";

const GPX = "http://www.topografix.com/GPX/1/1";

/** A FeatureCollection as of `cosplace locate --geojson`: a point for each answer, null for an unknown position. */
export function geojson(entries) {
  const features = entries.filter(({ result }) => result).map(({ name, result }) => {
    const { latitude, longitude, ...properties } = result;
    const geometry = hasPosition(result) ? { type: "Point", coordinates: [longitude, latitude] } : null;
    return { type: "Feature", geometry, properties: { ...properties, photo: name } };
  });
  return JSON.stringify({ type: "FeatureCollection", features }, null, 2);
}

/** GPX 1.1 with a waypoint for each answer with a position. */
export function gpx(entries) {
  const xml = document.implementation.createDocument(GPX, "gpx");
  xml.documentElement.setAttribute("version", "1.1");
  xml.documentElement.setAttribute("creator", "CosPlace");
  for (const { name, result } of entries.filter(({ result }) => result && hasPosition(result))) {
    const point = xml.createElementNS(GPX, "wpt");
    point.setAttribute("lat", result.latitude.toFixed(7));
    point.setAttribute("lon", result.longitude.toFixed(7));
    for (const [tag, text] of [["name", name], ["desc", headline(result)]]) {
      point.appendChild(xml.createElementNS(GPX, tag)).textContent = withoutControls(text);
    }
    xml.documentElement.append("\n", point);
  }
  xml.documentElement.append("\n");
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(xml)}\n`;
}

// XML has no control characters.
const withoutControls = (text) => [...text].filter((character) => character >= " ").join("");

/** Whether a sidecar can be written: of an answer with a position and a calibrated confidence. */
export const hasSidecar = (result) => hasPosition(result) && isCalibrated(result);

/** A new XMP sidecar with the position, marked as an estimate: the text of cosplace/photos/sidecars.py. */
export function sidecar(result) {
  const radius = result.radius_m;
  const values = [
    ["rdf:about", ""],
    ["xmlns:exif", "http://ns.adobe.com/exif/1.0/"],
    ["xmlns:cosplace", "urn:cosplace:estimate:1.0/"],
    ["exif:GPSVersionID", "2.3.0.0"],
    ["exif:GPSLatitude", degreesAndMinutes(result.latitude, "NS")],
    ["exif:GPSLongitude", degreesAndMinutes(result.longitude, "EW")],
    ["exif:GPSMapDatum", "WGS-84"],
    Number.isFinite(radius) ? ["exif:GPSHPositioningError", `${Math.round(10 * radius)}/10`] : null,
    ["exif:GPSProcessingMethod", "Estimated from similar photos by CosPlace"],
    ["cosplace:Estimated", "True"],
    ["cosplace:Verdict", result.verdict],
    ["cosplace:Confidence", result.confidence.toFixed(4)],
    Number.isFinite(radius) ? ["cosplace:RadiusMeters", radius.toFixed(1)] : null,
  ];
  const lines = values.filter(Boolean).map(([name, value]) => `${name}="${value}"`);
  return [
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>',
    '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="CosPlace">',
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">',
    `<rdf:Description ${lines.join("\n  ")}/>`,
    "</rdf:RDF>",
    "</x:xmpmeta>",
    '<?xpacket end="w"?>',
    "",
  ].join("\n");
}

function degreesAndMinutes(value, sides) {
  const total = Math.round(Math.abs(value) * 60 * 100000); // in 100,000ths of a minute
  const whole = Math.floor(total / 6000000);
  return `${whole},${((total % 6000000) / 100000).toFixed(5)}${sides[value < 0 ? 1 : 0]}`;
}

/** Let the browser save a text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
