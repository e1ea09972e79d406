//! What is known of raw files before they are read: text columns, and what is wrong at their beginning.

use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, RawEntities};

use super::{bookcrossing, goodreads};
use crate::common::{Raw, every_format};

fn texts(entities: &RawEntities) -> Vec<&str> {
    entities.texts.iter().map(|column| column.name.as_str()).collect()
}

/// The columns that are said to come are those that come.
fn assert_as_said(format: DatasetFormat, raw: &Raw, columns: &ColumnMapping) {
    let said = raw::text_columns(format, raw.path(), columns).unwrap();
    let read = raw::read(format, raw.path(), columns).unwrap();
    assert_eq!(said.users, texts(&read.users), "{}", format.name());
    assert_eq!(said.items, texts(&read.items), "{}", format.name());
    assert!(raw::look(format, raw.path(), columns).is_empty(), "{}", format.name());
}

#[test]
fn the_text_columns_of_every_layout_are_known_before() {
    let none = ColumnMapping::default();
    for (format, raw) in every_format() {
        assert_as_said(format, &raw, &none);
    }
    assert_as_said(DatasetFormat::Bookcrossing, &bookcrossing::small(), &none);
    assert_as_said(DatasetFormat::Goodreads, &goodreads::goodreads(), &none);
    assert_as_said(DatasetFormat::Goodreads, &goodreads::whole(), &none);
    let raw = Raw::new(&[
        ("ratings.csv", "user,item,rating,timestamp,city\nu,a,1,1,Oslo\n"),
        ("things.csv", "item,name,kind\na,A,x\n"),
    ]);
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let columns = ColumnMapping {
        items: "things.csv".into(),
        user_texts: list(&["city"]),
        item_texts: list(&["kind", "name"]),
        ..none
    };
    assert_as_said(DatasetFormat::Csv, &raw, &columns);
}

#[test]
fn every_table_that_lacks_a_column_is_named_at_once() {
    let raw = Raw::new(&[
        ("ratings.csv", "user,thing,rating,timestamp\nu,a,1,1\n"),
        ("things.csv", "item,title\na,A\n"),
    ]);
    let columns = ColumnMapping {
        items: "things.csv".into(),
        item_texts: vec!["name".into()],
        ..ColumnMapping::default()
    };
    let look = || -> Vec<String> {
        let problems = raw::look(DatasetFormat::Csv, raw.path(), &columns);
        problems.iter().map(ToString::to_string).collect()
    };
    let problems = look();
    assert!(problems[0].contains("things.csv") && problems[0].contains("name"), "{problems:?}");
    assert!(problems[1].contains("ratings.csv") && problems[1].contains("item"), "{problems:?}");
    assert_eq!(problems.len(), 2);
    raw.remove("things.csv");
    assert!(look()[0].contains("neither things.csv nor"), "{:?}", look());
}

#[test]
fn files_of_a_layout_that_are_missing_or_empty_are_named() {
    for (format, raw) in every_format() {
        let columns = ColumnMapping::default();
        for path in raw.files(format).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for damage in [Some(&b""[..]), None] {
                match damage {
                    Some(damage) => raw.put(name, damage),
                    None => raw.remove(name),
                }
                let problems = raw::look(format, raw.path(), &columns);
                assert_eq!(problems.len(), 1, "{name}");
                assert!(problems[0].to_string().contains(name), "{}", problems[0]);
            }
            raw.put(name, &bytes);
        }
    }
}
