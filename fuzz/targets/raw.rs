//! Raw ratings: files of any content in every layout, plain and compressed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{choice, piece, scratch};
use reclora_storage::protocol::{self, LabelRule, ProtocolConfig};
use reclora_storage::raw::{self, DatasetFormat};

fuzz_target!(|data: &[u8]| {
    let (variant, mut rest) = choice(data);
    let (format, names): (_, &[&str]) = match variant & 7 {
        0 => (DatasetFormat::Movietweetings, &["movies.dat", "ratings.dat"]),
        1 => (DatasetFormat::Movielens100k, &["u.item", "u.user", "u.data"]),
        2 => (DatasetFormat::Movielens1m, &["movies.dat", "users.dat", "ratings.dat"]),
        3 => (DatasetFormat::Movielens25m, &["movies.csv", "ratings.csv"]),
        4 => (DatasetFormat::Bookcrossing, &["BX-Users.csv", "BX-Books.csv", "BX-Book-Ratings.csv"]),
        5 => {
            (DatasetFormat::Goodreads, &["goodreads_books.json", "goodreads_interactions.json"])
        }
        // By the default mapping: columns user, item, rating, timestamp.
        // (Parquet has a target of its own.)
        _ => (DatasetFormat::Csv, &["ratings.csv"]),
    };
    let dir = scratch().join(format!("{}", variant & 7));
    std::fs::create_dir_all(&dir).expect("a directory");
    for (i, name) in names.iter().enumerate() {
        let (bytes, after) = piece(rest);
        rest = after;
        let compressed = variant & (8 << i) != 0;
        let (plain, gz) = (dir.join(name), dir.join(format!("{name}.gz")));
        let (path, other) = if compressed { (gz, plain) } else { (plain, gz) };
        std::fs::write(path, bytes).expect("a file");
        let _ = std::fs::remove_file(other);
    }
    let Ok(tables) = raw::read(format, &dir) else { return };
    let config = ProtocolConfig {
        k_core: 1,
        min_history: 0,
        label: LabelRule::AtLeast(4.0),
        split: [0.8, 0.1, 0.1],
    };
    let _ = protocol::prepare(&tables, &config);
});
