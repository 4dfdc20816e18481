// Positions on a map that repeats every 360 degrees: each is drawn in the copy of the world that is in view.

/** The longitude plus a multiple of 360 that is nearest to `reference`. */
export const nearestLongitude = (longitude, reference) => longitude + 360 * Math.round((reference - longitude) / 360);

/** [latitude, longitude] of a record, in the copy of the world nearest to a longitude. */
export const positionNear = (record, reference) => [
  record.latitude,
  nearestLongitude(record.longitude, reference),
];

/** [west, south, east, north] -> bounds for Leaflet in the copy nearest to a longitude; they continue beyond 180. */
export function boundsNear([west, south, east, north], reference) {
  const width = east < west ? east + 360 - west : east - west;
  const left = nearestLongitude(west + width / 2, reference) - width / 2;
  return [
    [south, left],
    [north, left + width],
  ];
}

const EARTH_RADIUS_M = 6371008.8;
const radians = (degrees) => (degrees * Math.PI) / 180;

/** Distance of two records in meters, on a sphere. */
export function distanceM(one, other) {
  const [up, across] = [radians(other.latitude - one.latitude), radians(other.longitude - one.longitude)];
  const cosines = Math.cos(radians(one.latitude)) * Math.cos(radians(other.latitude));
  const share = Math.sin(up / 2) ** 2 + cosines * Math.sin(across / 2) ** 2;
  return 2 * EARTH_RADIUS_M * Math.asin(Math.sqrt(Math.min(1, share)));
}

/** Width and height of [west, south, east, north] in meters. */
export function boxSizeM([west, south, east, north]) {
  const width = east < west ? east + 360 - west : east - west;
  const degree = radians(1) * EARTH_RADIUS_M;
  return [width * degree * Math.cos(radians((south + north) / 2)), (north - south) * degree];
}

/** Leaflet's bounds -> [west, south, east, north]; west is larger than east across the antimeridian. */
export function toBox(bounds) {
  const [west, east] = [bounds.getWest(), bounds.getEast()];
  const wrap = (longitude) => ((((longitude + 180) % 360) + 360) % 360) - 180;
  const sides = east - west >= 360 ? [-180, 180] : [wrap(west), wrap(east)];
  return [sides[0], Math.max(-90, bounds.getSouth()), sides[1], Math.min(90, bounds.getNorth())];
}
