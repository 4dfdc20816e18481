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
