//! Raw ratings: files of any content in every layout, plain and compressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, piece, scratch};
use reclora_storage::protocol::{self, LabelRule, ProtocolConfig};
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, Duplicates, TimeUnit, Unusable};
use reclora_storage::spill::Spill;

fuzz_target!(|data: &[u8]| {
    let (variant, mut rest) = choice(data);
    let (format, names): (_, &[&str]) = match variant & 7 {
        0 => (DatasetFormat::Movietweetings, &["movies.dat", "ratings.dat"]),
        1 => (DatasetFormat::Movielens100k, &["u.item", "u.user", "u.data"]),
        2 => (DatasetFormat::Movielens1m, &["movies.dat", "users.dat", "ratings.dat"]),
        3 => (DatasetFormat::Movielens25m, &["movies.csv", "ratings.csv"]),
        4 => {
            (DatasetFormat::Bookcrossing, &["BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"])
        }
        5 => (DatasetFormat::Goodreads, &["goodreads_books.json", "goodreads_interactions.json"]),
        6 => (DatasetFormat::Movielens10m, &["movies.dat", "ratings.dat"]),
        // Columns user, item, rating, timestamp. (Parquet has a target of its own.)
        _ => (DatasetFormat::Csv, &["ratings.csv"]),
    };
    let duplicates = match variant >> 6 {
        0 => Duplicates::Refuse,
        1 => Duplicates::First,
        _ => Duplicates::Last,
    };
    let mut columns = ColumnMapping::default();
    if format == DatasetFormat::Csv {
        let (settings, after) = choice(rest);
        rest = after;
        columns.time_unit = match settings & 7 {
            0 => TimeUnit::S,
            1 => TimeUnit::Ms,
            2 => TimeUnit::Us,
            3 => TimeUnit::Ns,
            _ => TimeUnit::Iso8601,
        };
        columns.missing = if settings & 8 == 0 { Unusable::Refuse } else { Unusable::Drop };
        columns.unmatched = if settings & 16 == 0 { Unusable::Refuse } else { Unusable::Drop };
        if settings & 32 != 0 {
            columns.timestamp.clear();
        }
        if settings & 64 != 0 {
            columns.items = "items.csv".into();
            let items = dir_of(variant).join("items.csv");
            std::fs::write(items, "item,name\na,A\nb,B\na,C\n").expect("a file");
            columns.item_texts = vec!["name".into()];
        }
    }
    let dir = dir_of(variant);
    for (i, name) in names.iter().enumerate() {
        let (bytes, after) = piece(rest);
        rest = after;
        let compressed = variant & (8 << i) != 0;
        let (plain, gz) = (dir.join(name), dir.join(format!("{name}.gz")));
        let (path, other) = if compressed { (gz, plain) } else { (plain, gz) };
        std::fs::write(path, bytes).expect("a file");
        let _ = std::fs::remove_file(other);
    }
    let read = raw::read_within(format, &dir, &columns, duplicates, &Spill::never());
    let Ok(tables) = read else { return };
    let config = ProtocolConfig {
        k_core: 1,
        min_history: 0,
        label: LabelRule::AtLeast(4.0),
        split: [0.8, 0.1, 0.1],
    };
    let _ = protocol::prepare(&tables, &config);
});

/// The directory of a layout's files.
fn dir_of(variant: u8) -> std::path::PathBuf {
    let dir = scratch().join(format!("{}", variant & 7));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}
