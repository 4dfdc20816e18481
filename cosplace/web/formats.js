// Formats of photos; HEIC, that of iPhones, to JPEG: by the server if it can, else by browsers that can.
import { ApiError, convertHeic } from "./api.js";

const QUALITY = 0.92;
const UNSUPPORTED_TYPE = 415;
const NO_CONVERSION =
  "Neither this browser nor the server can convert HEIC photos. Save the photo as JPEG, or on an iPhone select Settings > Camera > Formats > Most Compatible.";

/** What file choosers also offer if the server converts HEIC photos. */
export const HEIC_TYPES = "image/heic,image/heif,.heic,.heif";

export const isPhoto = ({ name, type }) => type.startsWith("image/") || /\.(jpe?g|png|webp|hei[cf])$/i.test(name);

export const isHeic = ({ name, type }) => /^image\/hei[cf]/.test(type) || /\.hei[cf]$/i.test(name);

/**
 * A HEIC photo as a JPEG file.  Throws an ApiError of the server, and one if nobody can convert it.
 *
 * onServer: whether the server can: it keeps the EXIF position, a browser does not.  options: of a request, see `locate`.
 */
export async function toJpeg(file, { onServer, ...options }) {
  const jpeg = onServer ? await convertHeic(file, options) : await convertHere(file);
  if (!jpeg) throw new ApiError(NO_CONVERSION, UNSUPPORTED_TYPE);
  return new File([jpeg], file.name.replace(/\.hei[cf]$/i, ".jpg"), { type: "image/jpeg" });
}

/** A photo as JPEG; null if this browser cannot decode it. */
async function convertHere(file) {
  try {
    const image = await createImageBitmap(file);
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  } catch {
    return null;
  }
}
