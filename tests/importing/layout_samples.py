"""The field's datasets in small: the folders, names and tables of each, with photos of 16 x 12 pixels."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pyproj import Geod, Proj

GEOD = Geod(ellps="WGS84")
_numbers = itertools.count()


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def photo(path: Path) -> Path:
    """Write a photo that no other one equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(_numbers)).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def away(latitude: float, longitude: float, east_m: float, north_m: float) -> tuple[float, float]:
    """The position some meters away, rounded as in the tables."""
    azimuth, meters = np.degrees(np.arctan2(east_m, north_m)), np.hypot(east_m, north_m)
    longitude, latitude, _ = GEOD.fwd(longitude, latitude, azimuth, meters)
    return round(latitude, 7), round(longitude, 7)


# --- GSV-Cities ------------------------------------------------------------------------------------------------------


def gsv_cities(folder: Path) -> Path:
    """Two cities of 3 places with 4 photos each.  The id of Paris is PRS; headings exceed 360 degrees."""
    for city, city_id, latitude, longitude in (("London", "London", 51.5, -0.12), ("Paris", "PRS", 48.85, 2.35)):
        rows = ["place_id,year,month,northdeg,city_id,lat,lon,panoid"]
        for place in range(3):
            for number in range(4):
                lat, lon = away(latitude, longitude, 200 * place + 2 * number, 0)
                pano, heading = f"Pa_{place}-{number}x", 300 + 60 * place + number
                rows.append(f"{place},{2012 + number},{number + 1},{heading},{city_id},{lat},{lon},{pano}")
                name = f"{city_id}_{place:07d}_{2012 + number}_{number + 1:02d}_{heading:03d}_{lat}_{lon}_{pano}.JPG"
                photo(folder / "Images" / city / name)
        write_lines(folder / "Dataframes" / f"{city}.csv", rows)
    return folder


# --- MSLS ------------------------------------------------------------------------------------------------------------

CITIES = {"cph": (55.68, 12.57), "sf": (37.77, -122.42), "zurich": (47.37, 8.54)}


def msls(folder: Path) -> Path:
    """Three cities: 4 database photos 100 m apart; a query near each, one far away, one not in the task, a panorama."""
    for city, center in CITIES.items():
        eastings = [0, 100, 200, 300]
        _msls_folder(folder, city, center, "database", [*eastings, 400], panoramas={4})
        queries = [5, 105, 205, 305, 5000, 110, 15]
        _msls_folder(folder, city, center, "query", queries, panoramas={6}, not_in_task={5})
    for part in ("database", "query"):
        place = folder / "test" / "miami" / part
        photo(place / "images" / "m1.jpg")
        write_lines(place / "subtask_index.csv", [",key,all", "0,m1,True"])
    return folder


def _msls_folder(
    folder: Path, city: str, center: tuple[float, float], part: str, eastings: Sequence[float],
    panoramas: set[int], not_in_task: set[int] = frozenset(),  # type: ignore[assignment]
) -> None:  # fmt: skip
    place = folder / "train_val" / city / part
    raw, post = [",key,lon,lat,ca,captured_at,pano"], [
        ",key,easting,northing,unique_cluster,night,control_panel,view_direction"
    ]  # fmt: skip
    task, sequence = [",key,all,s2w,w2s,o2n,n2o,d2n,n2d"], [",key,sequence_id,frame_number"]
    project = Proj(proj="utm", zone=int((center[1] + 180) // 6) + 1, ellps="WGS84")
    for row, meters in enumerate(eastings):
        key = f"{city}{part[0]}_{row}-k"
        latitude, longitude = away(*center, meters, 0)
        easting, northing = project(longitude, latitude)
        raw.append(f"{row},{key},{longitude},{latitude},{(80.5 + row) % 360},2018-05-2{row},{row in panoramas}")
        post.append(f"{row},{key},{easting},{northing},{row},False,False,Forward")
        task.append(f"{row},{key},{row not in not_in_task},False,False,False,False,False,False")
        sequence.append(f"{row},{key},seq{row // 3},{row}")
        photo(place / "images" / f"{key}.jpg")
    for name, lines in (("raw", raw), ("postprocessed", post), ("subtask_index", task), ("seq_info", sequence)):
        write_lines(place / f"{name}.csv", lines)


# --- Pittsburgh and Tokyo 24/7 ---------------------------------------------------------------------------------------


def write_struct(
    path: Path, database: Sequence[str], database_utm: np.ndarray, queries: Sequence[str], query_utm: np.ndarray
) -> None:
    """A dbStruct as NetVLAD's authors wrote it.  Positions are (N, 2)."""
    from scipy.io import savemat

    def cells(texts: Sequence[str]) -> np.ndarray:
        array = np.empty((len(texts), 1), object)
        array[:, 0] = texts
        return array

    content = {
        "whichSet": "test", "dbImageFns": cells(database), "utmDb": np.asarray(database_utm, float).T,
        "qImageFns": cells(queries), "utmQ": np.asarray(query_utm, float).T, "numImages": len(database),
        "numQueries": len(queries), "posDistThr": 25.0, "posDistSqThr": 625.0, "nonTrivPosDistSqThr": 100.0,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"dbStruct": content}, do_compression=True)


def pittsburgh(folder: Path, name: str = "pitts30k") -> Path:
    """Each split: 3 panoramas 100 m apart with 2 photos each, and 3 queries, 10 m north of them."""
    for number, split in enumerate(("train", "val", "test")):
        panoramas = [f"{number:03d}/{number:03d}{row:03d}" for row in range(3)]
        database = [f"{pano}_pitch1_yaw{yaw}.jpg" for pano in panoramas for yaw in (1, 2)]
        queries = [f"{pano}_pitch2_yaw7.jpg" for pano in panoramas]
        utm = np.array([[584_000.0 + 100 * row + 2000 * number, 4_477_000.0] for row in range(3)])
        write_struct(
            folder / "datasets" / f"{name}_{split}.mat", database, utm.repeat(2, 0), queries, utm + np.array([0, 10.0])
        )
        for path in database:
            photo(folder / path)
        for path in queries:
            photo(folder / "queries_real" / path)
    return folder


def tokyo(folder: Path, queries_folder: str = "247query_subset_v2") -> Path:
    """4 database photos 100 m apart, as PNG while the struct says JPEG; queries near two of them, with CSV files."""
    utm = np.array([[381_400.0 + 100 * row, 3_946_400.0] for row in range(4)])
    names = [f"03814/381462.0_394643{row}.9/{'abcdefghijklmnopqrstu'}{row}_012_{30 * row:03d}.jpg" for row in range(4)]
    for name in names:
        photo((folder / name).with_suffix(".png"))
    write_struct(folder / "datasets" / "tokyo247.mat", names, utm, ["00002.jpg", "00005.jpg"], utm[:2] + 5)
    project = Proj(proj="utm", zone=54, ellps="WGS84")
    for number, (east, north) in (("00002", utm[0] + 5), ("00005", utm[1] + 5), ("00007", utm[2] + 5)):
        if number == "00007" and "subset" in queries_folder:
            continue
        longitude, latitude = project(east, north, inverse=True)
        photo(folder / queries_folder / f"{number}.jpg")
        line = f"{number}.jpg,{latitude:.8f},{longitude:.8f},iPhone5s,2014:09:10 18:00:00"
        write_lines(folder / queries_folder / f"{number}.csv", [line])
    return folder


# --- places with numbers ---------------------------------------------------------------------------------------------


def nordland(folder: Path, *, with_list: bool = True, num_frames: int = 30) -> Path:
    """All four seasons; with a list, every second frame counts."""
    for season in ("summer", "winter", "spring", "fall"):
        for frame in range(1, num_frames + 1):
            photo(folder / season / f"images-{frame:05d}.png")
    if with_list:
        names = [f"images-{frame:05d}.png" for frame in range(2, num_frames + 1, 2)]
        write_lines(folder / "cleanImageNames.txt", names)
    return folder


def amstertime(folder: Path) -> Path:
    for pair in ("0000", "0001", "0017", "1230"):
        photo(folder / "new" / f"{pair}.png")
        photo(folder / "old" / f"{pair}.jpg")
    return folder


# --- St Lucia --------------------------------------------------------------------------------------------------------

DRIVES = ("100909_0845", "180809_1545", "190809_0845")


def st_lucia(folder: Path, *, video: bool = False, num_frames: int = 30) -> Path:
    """Three drives of 2 m per frame, each 3 m east of the one before.  Latitudes lack their sign."""
    for number, drive in enumerate(DRIVES):
        places = [away(-27.5, 152.99, 3 * number, 2 * frame) for frame in range(num_frames)]
        write_lines(folder / drive / "fGPS.txt", [f"{-latitude},{longitude}" for latitude, longitude in places])
        if video:
            write_video(folder / drive / "webcam_video.avi", num_frames)
        else:
            for frame in range(num_frames):
                photo(folder / drive / "frames" / f"{frame + 1:04d}.jpg")
    return folder


def write_video(path: Path, num_frames: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((48, 64, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


# --- prepared datasets -----------------------------------------------------------------------------------------------


def named(folder: Path, east_m: float, *, heading: int | str = "", note: str = "") -> Path:
    """A photo with an '@' name, some meters east of a place in San Francisco."""
    name = f"@{543_000 + east_m:010.2f}@4180000.00@10@S@@@pano{east_m:g}@@{heading}@@@@201809@{note}@.jpg"
    return photo(folder / name)


def prepared(folder: Path, database: str = "database", queries: Sequence[str] = ("queries",)) -> Path:
    """test/ (and a folder for each set of queries): 4 database photos 100 m apart, and a query near each."""
    for row in range(4):
        named(folder / "test" / database, 100 * row)
        for number, name in enumerate(queries):
            named(folder / "test" / name, 100 * row + 5 + number, note=name)
    return folder


def prepared_line(folder: Path, spacing_m: float, num_photos: int = 20) -> Path:
    """As VPR-datasets-downloader names Nordland (25 / 10.5 m) and AmsterTime (1000 m)."""
    for part in ("database", "queries"):
        for number in range(num_photos):
            north = f"{number * spacing_m:07.1f}" if spacing_m < 1000 else f"{number * 1000}"
            photo(folder / "images" / "test" / part / f"@0@{north}@@@@@{number}@@@@@@@@.jpg")
    return folder


def sf_xl(folder: Path, level: str) -> Path:
    """raw, processed or small of SF-XL, in that subfolder."""
    root = folder / level
    prepared(root, queries=("queries_v1", "queries_v2"))
    for row in range(2):
        named(root / "val" / "database", 10_000 + 100 * row)
        named(root / "val" / "queries", 10_005 + 100 * row)
    for row in range(4):
        train = root / "train" / "panoramas" if level == "raw" else root / "train" / "37.70"
        named(train, 20_000 + row, heading=30 * row)
    return folder
