//! Parquet as other tools write it: the files of `tests/peer`, made by the script beside them.

use std::path::{Path, PathBuf};

use reclora_storage::raw::DatasetFormat::{Csv, Parquet};
use reclora_storage::raw::{self, ColumnMapping, RawTables};

use super::{field, refused, rows, text};

fn peer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer")
}

fn read(ratings: &str, items: &str) -> RawTables {
    let format = if ratings.ends_with(".csv") { Csv } else { Parquet };
    let columns = ColumnMapping {
        ratings: ratings.into(),
        items: items.into(),
        item_fields: vec!["genre".into()],
        item_texts: vec!["title".into()],
        ..ColumnMapping::default()
    };
    raw::read(format, &peer(), &columns).unwrap_or_else(|e| panic!("{ratings}: {e}"))
}

#[test]
fn every_tool_and_compression_gives_the_rows_of_the_csv() {
    let csv = read("ratings.csv", "items.csv");
    assert_eq!(field(&csv.items, "genre")[..3], ["Drama", "Comedy|Drama", ""]);
    for (ratings, items) in [
        ("polars.ratings.parquet", "polars.items.parquet"),
        ("pandas.ratings.parquet", "pandas.items.parquet"),
        ("duckdb.wide.parquet", "duckdb.items.parquet"),
        ("pyarrow.none.parquet", "pyarrow.items.parquet"),
        ("pyarrow.gzip.parquet", "pyarrow.items.parquet"),
        ("pyarrow.zstd.parquet", "pyarrow.items.parquet"),
        ("pyarrow.brotli.parquet", "pyarrow.items.parquet"),
        ("pyarrow.lz4.parquet", "pyarrow.items.parquet"),
        ("pyarrow.delta-1.parquet", "polars.items.parquet"),
        ("pyarrow.delta-2.parquet", "polars.items.parquet"),
        ("pyarrow.types.parquet", "polars.items.parquet"),
    ] {
        assert!(read(ratings, items) == csv, "{ratings}, {items}");
    }
}

#[test]
fn ids_of_a_warehouse_are_text() {
    let csv = read("ratings.csv", "items.csv");
    let duck = read("duckdb.ratings.parquet", "duckdb.items.parquet");
    assert_eq!(duck.ratings, csv.ratings);
    assert_eq!(duck.items.keys, ["0", "1", "2", "3", "4", "5", "6"]);
    assert_eq!(duck.users.keys[11], "00000000-0000-0000-0000-00000000000b");
}

#[test]
fn decimals_are_exact_in_every_physical_type() {
    let columns = ColumnMapping {
        ratings: "pyarrow.types.parquet".into(),
        item: "timestamp".into(),
        item_texts: ["int32", "int64", "fixed", "yes"].map(str::to_owned).into(),
        ..ColumnMapping::default()
    };
    let tables = raw::read(Parquet, &peer(), &columns).unwrap();
    let first = |name| text(&tables.items, name)[..3].to_vec();
    assert_eq!(rows(&tables)[..3].iter().map(|row| row.2).collect::<Vec<_>>(), [0.5, 1.0, 1.5]);
    assert_eq!(first("int32"), ["0.50", "1.00", "1.50"]);
    assert_eq!(first("int64"), ["0.5000", "1.0000", "1.5000"]);
    assert_eq!(first("fixed"), ["0.5", "1.0", "1.5"]);
    assert_eq!(first("yes"), ["false", "false", "false"]);
}

#[test]
fn what_can_not_be_read_is_named_as_the_format_names_it() {
    let with = |column: &str| ColumnMapping {
        ratings: "pyarrow.nested.parquet".into(),
        item_texts: vec![column.into()],
        ..ColumnMapping::default()
    };
    for (column, kind) in [
        ("place", "struct"),
        ("tags", "map"),
        ("casts", "list of lists or structs"),
        ("deep", "list of lists or structs"),
        ("clock", "TIME(MICROS)"),
    ] {
        let words =
            format!("the column {column:?} (data.columns.item_texts) is of type {kind}, which");
        refused(raw::read(Parquet, &peer(), &with(column)), &[&words, "write it as text"]);
    }
    let path = peer().join("pyarrow.nested.parquet");
    let sample = raw::sample(Parquet, &path, &ColumnMapping::default()).unwrap();
    let shown: Vec<(&str, &str, bool)> =
        sample.columns.iter().map(|c| (c.name.as_str(), c.kind.as_str(), c.readable)).collect();
    assert_eq!(
        shown,
        [
            ("user", "STRING", true),
            ("item", "INT64", true),
            ("rating", "DOUBLE", true),
            ("timestamp", "INT64", true),
            ("place", "struct", false),
            ("tags", "map", false),
            ("casts", "list of lists or structs", false),
            ("deep", "list of lists or structs", false),
            ("clock", "TIME(MICROS)", false),
        ]
    );
    assert_eq!((sample.columns[0].examples(), sample.problem), (&["a".to_owned()][..], None));
}
