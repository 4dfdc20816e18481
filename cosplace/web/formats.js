// HEIC, the format of iPhones, to JPEG: by the server if it can, else by browsers that can.
import { convertHeic } from "./api.js";

const QUALITY = 0.92;
const isHeic = (file) => /^image\/hei[cf]/.test(file.type) || /\.hei[cf]$/i.test(file.name);

const jpegFile = (jpeg, file) => new File([jpeg], file.name.replace(/\.hei[cf]$/i, ".jpg"), { type: "image/jpeg" });

/**
 * The same file, or for a HEIC photo a JPEG; null if nobody can convert it.  Throws an ApiError of the server.
 *
 * The server keeps the EXIF position, a browser does not.
 */
export async function toJpeg(file, { onServer }) {
  if (!isHeic(file)) return file;
  if (onServer) return jpegFile(await convertHeic(file), file);
  try {
    const image = await createImageBitmap(file);
    const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    const jpeg = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
    return jpeg && jpegFile(jpeg, file);
  } catch {
    return null;
  }
}
