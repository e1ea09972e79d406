//! Readers: what the layouts hold, and every way a file can be wrong.

use crate::common::{
    Raw, every_format, movielens_1m, movielens_10m, movielens_25m, movielens_100k, movietweetings,
    ratings, seconds,
};
use proptest::prelude::*;
use reclora_storage::StorageError;
use reclora_storage::raw::{self, ColumnMapping, DatasetFormat, RawEntities};

use DatasetFormat::{Movielens1m, Movielens10m, Movielens25m, Movielens100k, Movietweetings};

fn text<'a>(entities: &'a RawEntities, column: &str, row: usize) -> &'a str {
    &entities.texts.iter().find(|t| t.name == column).unwrap().values[row]
}

fn field<'a>(entities: &'a RawEntities, column: &str, row: usize) -> &'a str {
    &entities.fields.iter().find(|t| t.name == column).unwrap().values[row]
}

fn names(entities: &RawEntities) -> Vec<&str> {
    entities.fields.iter().map(|f| f.name.as_str()).collect()
}

#[test]
fn reads_movietweetings() {
    let raw = movietweetings().read(Movietweetings).unwrap();
    assert_eq!(raw.items.keys, ["0000010", "0000002", "0000003"]);
    assert_eq!(names(&raw.items), ["title", "genre"]);
    assert_eq!(text(&raw.items, "title", 1), "Amélie \"Le Fabuleux\", destin (2001)");
    assert_eq!(text(&raw.items, "year", 1), "2001");
    assert_eq!(text(&raw.items, "genres", 0), "Documentary, Short");
    assert_eq!(field(&raw.items, "genre", 0), "Documentary");
    assert_eq!(field(&raw.items, "title", 0), "La sortie (1895)");
    assert_eq!((text(&raw.items, "genres", 2), text(&raw.items, "year", 2)), ("", ""));
    assert_eq!(raw.users.keys, ["7", "9", "10"]);
    assert!(raw.users.fields.is_empty() && raw.users.texts.is_empty());
    assert_eq!(raw.rating_levels, (0_u8..=10).map(f32::from).collect::<Vec<_>>());
    assert_eq!(ratings(&raw, |r| r.level), [8, 10, 0, 3]);
    assert_eq!(ratings(&raw, |r| r.user), [0, 0, 1, 2]);
    assert_eq!(ratings(&raw, |r| r.item), [1, 0, 1, 2]);
    assert_eq!(seconds(&raw), [100, 50, 100, 100]);
}

#[test]
fn reads_movielens_1m() {
    let raw = movielens_1m().read(Movielens1m).unwrap();
    assert_eq!(text(&raw.items, "title", 1), "Misérables, Les (1995)");
    assert_eq!(names(&raw.users), ["gender", "age", "occupation", "zip"]);
    assert_eq!(names(&raw.items), ["title", "genre"]);
    assert_eq!(field(&raw.users, "zip", 1), "70072-123");
    assert_eq!(field(&raw.users, "occupation", 0), "10");
    let words = |row| ["gender", "age", "occupation"].map(|c| text(&raw.users, c, row).to_owned());
    assert_eq!(words(0), ["female", "under 18", "K-12 student"]);
    assert_eq!(words(1), ["male", "56 or older", "self-employed"]);
    assert!(raw.users.texts.iter().all(|t| t.name != "zip"), "zip codes never enter the text");
    assert_eq!(raw.rating_levels, [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(ratings(&raw, |r| r.level), [4, 2, 0]);
}

#[test]
fn reads_movielens_100k() {
    let raw = movielens_100k().read(Movielens100k).unwrap();
    assert_eq!(names(&raw.users), ["gender", "age", "occupation", "zip"]);
    assert_eq!(field(&raw.users, "age", 1), "53");
    assert_eq!(field(&raw.users, "gender", 1), "F");
    assert_eq!(text(&raw.users, "gender", 1), "female");
    assert_eq!(text(&raw.users, "occupation", 0), "technician");
    assert_eq!(text(&raw.items, "genres", 0), "Animation, Children's, Comedy");
    assert_eq!(field(&raw.items, "genre", 0), "Animation");
    assert_eq!(field(&raw.items, "genre", 1), "unknown");
    assert_eq!(field(&raw.items, "genre", 2), "");
    assert_eq!(text(&raw.items, "title", 2), "Café, \"Le\" (1990)");
    assert_eq!(raw.rating_levels.len(), 5);
    assert_eq!(seconds(&raw), [881_250_949, 891_717_742]);
}

#[test]
fn reads_movielens_10m() {
    let raw = movielens_10m().read(Movielens10m).unwrap();
    assert_eq!(text(&raw.items, "title", 1), "Lord of the Rings: The Two Towers, The (2002)");
    assert_eq!(text(&raw.items, "title", 2), "Amélie (2001)");
    assert_eq!(raw.items.keys, ["1", "5952", "7"]);
    assert_eq!(raw.users.keys, ["1", "2"]);
    assert!(raw.users.fields.is_empty());
    assert_eq!(raw.rating_levels.len(), 10);
    assert_eq!(ratings(&raw, |r| r.level), [9, 6, 0]);
    assert_eq!(seconds(&raw), [838_985_046, 838_983_525, 838_983_392]);
    movielens_10m().refused(Movietweetings, &["3.5 is not a rating of this format"]);
}

#[test]
fn reads_movielens_25m() {
    let raw = movielens_25m().read(Movielens25m).unwrap();
    assert_eq!(text(&raw.items, "title", 1), "American President, The (1995)");
    assert_eq!(text(&raw.items, "title", 2), "\"Great\" Amélie, (2001)");
    assert_eq!(field(&raw.items, "genre", 2), "(no genres listed)");
    assert_eq!(raw.rating_levels.len(), 10);
    assert_eq!(ratings(&raw, |r| r.level), [0, 9, 6]);
    assert_eq!(raw.users.keys, ["1", "2"]);
}

#[test]
fn compressed_crlf_and_byte_order_marks_read_the_same() {
    for (format, raw) in every_format() {
        let plain = raw.read(format).unwrap();
        for path in raw.files(format).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let bytes = std::fs::read(&path).unwrap();
            let crlf: Vec<u8> = bytes
                .iter()
                .flat_map(|b| if *b == b'\n' { vec![b'\r', b'\n'] } else { vec![*b] })
                .collect();
            raw.put(&name, &crlf);
            assert_eq!(raw.read(format).unwrap(), plain, "CRLF in {name}");
            raw.put(&name, &[&b"\xef\xbb\xbf"[..], &bytes].concat());
            assert_eq!(raw.read(format).unwrap(), plain, "mark in {name}");
            raw.put(&name, &[&bytes[..], b"\n\r\n\n"].concat());
            assert_eq!(raw.read(format).unwrap(), plain, "blank lines after {name}");
            raw.put(&name, bytes.strip_suffix(b"\n").unwrap_or(&bytes));
            assert_eq!(raw.read(format).unwrap(), plain, "no newline at the end of {name}");
            raw.remove(&name);
            raw.put_gz(&format!("{name}.gz"), &bytes);
            assert_eq!(raw.read(format).unwrap(), plain, "{name}.gz");
            let files = raw.files(format).unwrap();
            assert!(files.contains(&raw.path().join(format!("{name}.gz"))));
        }
    }
}

#[test]
fn converted_copies_of_latin1_files_are_read_as_utf8() {
    let raw = movielens_1m();
    raw.put("movies.dat", "1::Toy (1995)::Comedy\n2::Misérables, Les (1995)::Drama\n".as_bytes());
    let tables = raw.read(Movielens1m).unwrap();
    assert_eq!(text(&tables.items, "title", 1), "Misérables, Les (1995)");
}

#[test]
fn missing_files_are_named() {
    for (format, raw) in every_format() {
        for path in raw.files(format).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            raw.remove(name);
            raw.refused(format, &[raw.path().to_str().unwrap(), name, ".gz", "data.path"]);
            assert!(raw.files(format).is_err());
            raw.put(name, &bytes);
        }
        let nowhere = raw.path().join("nowhere");
        assert!(matches!(
            raw::read(format, &nowhere, &ColumnMapping::default()),
            Err(StorageError::MissingRawFile { .. })
        ));
    }
}

#[test]
fn empty_files_are_named() {
    for (format, raw) in every_format() {
        for path in raw.files(format).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for nothing in ["", "\n", "\r\n\n", "\u{feff}"] {
                raw.put(name, nothing.as_bytes());
                raw.refused(format, &[name, "no rows"]);
            }
            raw.put(name, &bytes);
            raw.read(format).unwrap();
        }
    }
    // A header alone is no rating either.
    let raw = movielens_25m();
    raw.put("ratings.csv", b"userId,movieId,rating,timestamp\n");
    raw.refused(Movielens25m, &["ratings.csv", "no rows"]);
}

#[test]
fn truncated_and_damaged_gzip_is_named() {
    for (format, raw) in every_format() {
        for path in raw.files(format).unwrap() {
            let name = path.file_name().unwrap().to_str().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            raw.remove(name);
            let gz = format!("{name}.gz");
            let whole = raw.put_gz(&gz, &bytes);
            raw.read(format).unwrap();
            for len in 1..whole.len() {
                raw.put(&gz, &whole[..len]);
                raw.refused(format, &[&gz]);
            }
            let mut damaged = whole.clone();
            let middle = whole.len() - 6;
            damaged[middle] ^= 0xff;
            raw.put(&gz, &damaged);
            raw.refused(format, &[&gz, "truncated or damaged: download it again"]);
            raw.put(&gz, b"");
            raw.refused(format, &[&gz]);
            raw.put(&gz, &bytes);
            raw.refused(format, &[&gz]);
            raw.put_gz(&gz, &bytes);
        }
    }
}

/// A raw directory whose ratings are the good ones and one more line.
fn with_line(format: DatasetFormat, raw: &Raw, line: &str) -> u64 {
    let path = raw.files(format).unwrap().pop().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    raw.put(path.file_name().unwrap().to_str().unwrap(), format!("{text}{line}\n").as_bytes());
    text.lines().count() as u64 + 1
}

#[test]
fn bad_ratings_are_named_by_file_line_and_field() {
    let separators = ["::", "\t", "::", ","];
    let tables = [None, Some("u.user"), Some("users.dat"), None];
    for (i, separator) in separators.iter().enumerate() {
        let check = |columns: &[&str], words: &[&str]| {
            let (format, raw) = every_format().into_iter().nth(i).unwrap();
            let line = with_line(format, &raw, &columns.join(separator));
            let place = format!(":{line}: ");
            raw.refused(format, &[&[place.as_str()], words].concat());
        };
        let item = ["0000003", "1", "3", "1"][i];
        let user = ["7", "1", "2", "1"][i];
        check(&[user, item, "5"], &["line: 3 columns where the layout has 4"]);
        check(&[user, item, "5", "1", "1"], &["line: 5 columns where the layout has 4"]);
        check(&[user, item, "five", "1"], &["rating: \"five\" is not a number"]);
        check(&[user, item, "5", ""], &["timestamp: missing"]);
        check(&[user, item, "", "1"], &["rating: missing"]);
        for rating in ["11", "-1", "2.25", "NaN", "inf", "1e30"] {
            let words = format!("rating: {rating} is not a rating of this format: ");
            check(&[user, item, rating, "1"], &[&words, ", 5"]);
        }
        for time in ["soon", "1.5.", "99999999999999999999"] {
            check(
                &[user, item, "5", time],
                &["timestamp: ", "is not a time", "seconds since 1970"],
            );
        }
        check(
            &[user, item, "5", "1147880044000"],
            &["timestamp: 1147880044000 is in the year", "milliseconds", "2006-05-17T15:34:04Z"],
        );
        check(&[user, "999", "5", "1"], &["item: \"999\" is not in ", "movies.", "item"][..1]);
        check(&["", item, "5", "1"], &["user: empty"]);
        check(&[user, "", "5", "1"], &["item: empty"]);
        if let Some(table) = tables[i] {
            check(&["999", item, "5", "1"], &["user: \"999\" is not in ", table]);
        }
    }
}

#[test]
fn repeated_ratings_name_both_lines() {
    for (format, raw) in every_format() {
        let path = raw.files(format).unwrap().pop().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let header = usize::from(format == Movielens25m);
        let first = text.lines().nth(header).unwrap().to_owned();
        let line = with_line(format, &raw, &first);
        let same = format!(":{line}: line: the same line as line {}", header + 1);
        raw.refused(format, &[&same]);

        raw.put(path.file_name().unwrap().to_str().unwrap(), text.as_bytes());
        let later = with_line(format, &raw, &format!("{first}.5"));
        raw.refused(
            format,
            &[&format!(":{later}: "), "has rated item ", &format!("in line {}", header + 1)],
        );
    }
}

#[test]
fn lines_that_can_not_be_used_are_counted_by_kind() {
    for (format, raw) in every_format() {
        let path = raw.files(format).unwrap().pop().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let good = text.lines().last().unwrap().to_owned();
        let name = path.file_name().unwrap().to_str().unwrap();
        let bad = format!("x\n{good}\ny\n{good}\n{good}\n{good}soon\n");
        raw.put(name, format!("{text}{bad}").as_bytes());
        let first = text.lines().count() + 1;
        raw.refused(
            format,
            &[
                &format!("{name}: 6 rows can't be used\n"),
                &format!("\n  2 rows: another number of columns (first: line {first}: 1 columns"),
                &format!(
                    "\n  1 row: not seconds since 1970 (first: line {}, timestamp: ",
                    first + 5
                ),
                &format!(
                    "\n  3 ratings given twice (first: line {}: the same line as line",
                    first + 1
                ),
            ],
        );
    }
    // A blank line is one of them, and so are rows of a table.
    let raw = movietweetings();
    raw.put("movies.dat", b"1::A::\n\n2::B::\n1::C::\n2::D::\n\n3\n");
    raw.refused(
        Movietweetings,
        &[
            "movies.dat: 5 rows can't be used\n  2 rows: blank (first: line 2: ",
            "\n  2 rows: an id that an earlier row has (first: line 4, item: \"1\" is defined",
            "\n  1 row: another number of columns (first: line 7: ",
        ],
    );
}

#[test]
fn bad_tables_are_named_by_file_line_and_field() {
    let check = |format, raw: &Raw, name: &str, text: &str, words: &[&str]| {
        let path = raw.path().join(name);
        let good = std::fs::read(&path).unwrap();
        raw.put(name, text.as_bytes());
        raw.refused(format, &[&[name], words].concat());
        raw.put(name, &good);
    };
    let raw = movietweetings();
    let movies = |text, words: &[&str]| check(Movietweetings, &raw, "movies.dat", text, words);
    movies("1::A (1990)\n", &[":1: line: 2 columns where the layout has 3"]);
    movies("1::A::B::C\n", &[":1: line: 4 columns"]);
    movies("1::A::\n\n2::B::\n", &[":2: line: blank line"]);
    movies("1::A::\n2::B::\n1::C::\n", &[":3: item: \"1\" is defined already, in line 1"]);
    movies("::A::\n", &[":1: item: empty"]);

    let raw = movielens_1m();
    let users = |text, words: &[&str]| check(Movielens1m, &raw, "users.dat", text, words);
    users("1::F::1::10\n", &[":1: line: 4 columns where the layout has 5"]);
    users("1::X::1::10::1\n", &[":1: gender: \"X\" is not one of M, F"]);
    users("1::F::2::10::1\n", &[":1: age: \"2\""]);
    users("1::F::1::21::1\n", &[":1: occupation: \"21\""]);
    users("1::F::1::-1::1\n", &[":1: occupation: \"-1\""]);
    users("1::F::1::1::1\n1::F::1::1::1\n", &[":2: user: \"1\" is defined already, in line 1"]);

    let raw = movielens_100k();
    check(Movielens100k, &raw, "u.user", "1|old|M|x|1\n", &[":1: age: \"old\" is not a number"]);
    check(Movielens100k, &raw, "u.user", "1|20|?|x|1\n", &[":1: gender: \"?\""]);
    check(Movielens100k, &raw, "u.item", "1|A||||1|0\n", &[":1: line: 7 columns", "has 24"]);
    let flags = format!("1|A||||2{}\n", "|0".repeat(18));
    check(Movielens100k, &raw, "u.item", &flags, &[":1: genre: \"2\" is not one of 0, 1"]);

    let raw = movielens_25m();
    let movies = |text, words: &[&str]| check(Movielens25m, &raw, "movies.csv", text, words);
    movies("id,title\n1,A\n", &[":1: header: ", "movieId,title,genres"]);
    movies("1,A,Comedy\n", &[":1: header: "]);
    movies("movieId,title,genres\n1,A\n", &[":2: line: 2 columns where the layout has 3"]);
    movies("movieId,title,genres\n1,A, B,C\n", &[":2: line: 4 columns"]);
    movies("movieId,title,genres\n1,\"A,B\n2,C,D\n", &[":2: line: 2 columns"]);
    movies("movieId,title,genres\n1,\"A\nB\",C\n1,D,E\n", &[":4: item: ", "in line 2"]);
}

#[test]
fn bytes_that_are_not_utf8_are_named_where_utf8_is_required() {
    let raw = movietweetings();
    raw.put("movies.dat", b"1::Good::\n2::Mis\xe9rables::\n");
    raw.refused(Movietweetings, &["movies.dat:2: line: not valid UTF-8 (byte 6 of the line)"]);
    let raw = movielens_25m();
    raw.put("movies.csv", b"movieId,title,genres\n1,Mis\xe9rables,Drama\n");
    raw.refused(Movielens25m, &["movies.csv:2: ", "not valid UTF-8"]);
}

#[test]
fn a_file_without_line_ends_does_not_fill_the_memory() {
    let raw = movietweetings();
    raw.put("movies.dat", &vec![b'x'; 3 << 20]);
    raw.refused(Movietweetings, &["movies.dat:1: line: longer than"]);
}

#[test]
fn ids_are_kept_as_they_are_written() {
    let raw = movietweetings();
    raw.put("ratings.dat", b"07::0000002::8::100\n7::0000002::8::100\n");
    assert_eq!(raw.read(Movietweetings).unwrap().users.keys, ["07", "7"]);
    raw.put("ratings.dat", b"7::2::8::100\n");
    raw.refused(Movietweetings, &["item: \"2\" is not in "]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_files_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "[0-9:|,\t\n\r\"M.]{0,120}",
        which in 0_usize..3,
    ) {
        for (format, raw) in every_format() {
            let files = raw.files(format).unwrap();
            let name = files[which % files.len()].file_name().unwrap().to_str().unwrap().to_owned();
            for content in [&bytes[..], text.as_bytes()] {
                raw.put(&name, content);
                let _ = raw.read(format);
            }
            raw.remove(&name);
            raw.put(&format!("{name}.gz"), &[&b"\x1f\x8b\x08\0"[..], &bytes].concat());
            let _ = raw.read(format);
        }
    }
}
