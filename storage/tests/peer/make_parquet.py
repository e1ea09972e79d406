"""Writes the small Parquet files of this directory, as the tools write them that people have.

    pip install polars duckdb pandas pyarrow
    python make_parquet.py

Every table of ratings holds the same rows, and so do the tables of items: twelve users rate five of seven items.
The tests compare them with what they make of the CSV of the same rows.
"""

import decimal
import os
import uuid

import duckdb
import pandas
import polars
import pyarrow
import pyarrow.parquet

os.chdir(os.path.dirname(os.path.abspath(__file__)))

rows = []
for user in range(12):
    for i in range(5):
        item = (user * 3 + i * 2) % 7
        rows.append((f"u{user:02}", item, ((user + i) % 10 + 1) / 2, 1600000000 + user * 100 + i))
frame = pandas.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
genres = [["Drama"], ["Comedy", "Drama"], [], ["Crime"], ["Crime", "Drama", "War"], ["Comedy"], None]
items = pandas.DataFrame({"item": range(7), "title": [f"Film {i}" for i in range(7)], "genre": genres})

frame.to_csv("ratings.csv", index=False)
joined = ["|".join(genre or []) for genre in genres]
items.assign(genre=joined).to_csv("items.csv", index=False)

# Polars: zstd, large lists of string views.
polars.DataFrame(frame.to_dict("list")).write_parquet("polars.ratings.parquet")
polars.DataFrame(items.to_dict("list")).write_parquet("polars.items.parquet")

# DuckDB: decimals, UUIDs of users, lists, and text that is delta-encoded (version 2).
frame["id"] = [str(uuid.UUID(int=int(user[1:]))) for user in frame["user"]]
duckdb.register("ratings", frame)
duckdb.register("items", items)
duckdb.sql(
    "COPY (SELECT id::UUID AS user, item::DECIMAL(18, 0) AS item, rating::DECIMAL(4, 2) AS rating, timestamp FROM ratings)"
    " TO 'duckdb.ratings.parquet' (FORMAT parquet)"
)
duckdb.sql(
    "COPY (SELECT user, item::DECIMAL(38, 0) AS item, rating::DECIMAL(30, 3) AS rating, timestamp FROM ratings)"
    " TO 'duckdb.wide.parquet' (FORMAT parquet, PARQUET_VERSION v2, DICTIONARY_SIZE_LIMIT 1)"
)
duckdb.sql("COPY items TO 'duckdb.items.parquet' (FORMAT parquet, COMPRESSION zstd)")

# pandas: its defaults.
frame.drop(columns="id").to_parquet("pandas.ratings.parquet")
items.to_parquet("pandas.items.parquet")

# pyarrow: the other compressions, decimals of all physical types, numbers of 16 bits, fixed binary, lists as they were
# written before the format said how.
table = pyarrow.Table.from_pandas(frame.drop(columns="id"), preserve_index=False)
for codec in ["brotli", "lz4", "gzip", "zstd", "none"]:
    pyarrow.parquet.write_table(table, f"pyarrow.{codec}.parquet", compression=codec)


def decimals(values, precision, scale):
    exact = [decimal.Decimal(str(value)) for value in values]
    return pyarrow.array(exact, pyarrow.decimal128(precision, scale))


types = pyarrow.table(
    {
        "user": pyarrow.array([user.encode() for user in frame["user"]], pyarrow.binary(3)),
        "item": decimals(frame["item"], 9, 0),
        "rating": pyarrow.array(frame["rating"], pyarrow.float16()),
        "timestamp": frame["timestamp"],
        "int32": decimals(frame["rating"], 5, 2),
        "int64": decimals(frame["rating"], 15, 4),
        "fixed": decimals(frame["rating"], 25, 1),
        "yes": frame["rating"] > 2,
    }
)
pyarrow.parquet.write_table(types, "pyarrow.types.parquet", store_decimal_as_integer=True)
delta = {"user": "DELTA_BYTE_ARRAY", "item": "DELTA_BINARY_PACKED", "rating": "BYTE_STREAM_SPLIT"}
for version in ["1.0", "2.0"]:
    pyarrow.parquet.write_table(
        table,
        f"pyarrow.delta-{version[0]}.parquet",
        use_dictionary=False,
        column_encoding={**delta, "timestamp": "DELTA_BINARY_PACKED"},
        data_page_version=version,
    )
titles = pyarrow.Table.from_pandas(items, preserve_index=False)
pyarrow.parquet.write_table(
    titles,
    "pyarrow.items.parquet",
    use_dictionary=False,
    use_compliant_nested_type=False,
    column_encoding={"title": "DELTA_LENGTH_BYTE_ARRAY", "genre.list.item": "DELTA_BYTE_ARRAY"},
    data_page_version="2.0",
)

# What can't be read.
pyarrow.parquet.write_table(
    pyarrow.table(
        {
            "user": ["a"],
            "item": [1],
            "rating": [1.0],
            "timestamp": [1],
            "place": [{"city": "Oslo", "country": "NO"}],
            "tags": pyarrow.array([[("k", "v")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
            "casts": [[{"name": "x"}]],
            "deep": [[["a"]]],
            "clock": pyarrow.array([1], pyarrow.time64("us")),
        }
    ),
    "pyarrow.nested.parquet",
)
