//! Parquet files byte by byte, in which one thing is not true.
//!
//! Each of them makes the decoder end the process, fill the memory or work for hours when it is given it as it
//! is. They are small; what they claim is not.

use std::time::{Duration, Instant};

use reclora_storage::raw::DatasetFormat::Parquet;
use reclora_storage::raw::{self, ColumnMapping};

use crate::common::Raw;
use craft::{Column, DELTA_BYTE_ARRAY, DELTA_LENGTH_BYTE_ARRAY, dictionary, page};

mod craft;

/// What is said of the only column of a file.
#[track_caller]
fn said(file: &[u8]) -> String {
    let raw = Raw::new(&[]);
    raw.put("x.parquet", file);
    let begin = Instant::now();
    let sample = raw::sample(Parquet, &raw.path().join("x.parquet"), &ColumnMapping::default());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    sample.map_or_else(|e| e.to_string(), |s| s.problem.unwrap_or_default())
}

#[track_caller]
fn refused(file: &[u8], words: &str) {
    let said = said(file);
    assert!(said.contains(words), "{said:?} does not say {words:?}");
}

#[test]
fn what_is_true_is_read() {
    assert_eq!(said(&Column::text(3, page(3, 0, b"\x01\0\0\0a\x01\0\0\0b\0\0\0\0")).file()), "");
    assert_eq!(
        said(&Column::text(1, page(1, DELTA_LENGTH_BYTE_ARRAY, b"\x80\x01\x04\x01\x02a")).file()),
        ""
    );
    assert_eq!(said(&Column::listed(3, 1, craft::one_list(3)).file()), "");
    let words = [dictionary(1, b"\x01\0\0\0a"), page(2, 8, b"\x01\x04\0")].concat();
    assert_eq!(said(&Column { dictionary: true, ..Column::text(2, words) }.file()), "");
}

#[test]
fn s3_no_list_of_a_footer_is_longer_than_it() {
    let column = Column::text(1, page(1, 0, b"\x01\0\0\0a"));
    // Row groups, for which memory is reserved; and truth values, which take no bytes to be passed over.
    refused(&column.claiming_groups(i32::MAX as u64), "its footer can't be read");
    refused(&column.with_truths(i32::MAX as u64), "its footer can't be read");
    refused(&column.hiding_groups(i32::MAX as u64), "its footer can't be read");
}

#[test]
fn s3_no_page_unpacks_to_more_than_a_limit() {
    let claims =
        |size| Column { codec: 1, ..Column::text(1, craft::sized(1, 0, size, &[1, 0, 7])) };
    refused(&claims(i32::MAX).file(), "more than the limit");
    refused(&claims(100 << 20).file(), "3 bytes can't");
    refused(&claims(-1).file(), "more than the limit");
}

#[test]
fn s3_no_dictionary_has_more_values_than_bytes() {
    let pages = [dictionary(i32::MAX, b"\x01\0\0\0a"), page(1, 8, b"\x01\x02\0")].concat();
    refused(
        &Column { dictionary: true, ..Column::text(1, pages) }.file(),
        "no dictionary of 5 bytes",
    );
}

#[test]
fn s3_no_delta_encoded_text_is_believed() {
    // 2^58 texts, in the lengths of the texts and in those of their beginnings.
    let huge = b"\x80\x01\x04\x80\x80\x80\x80\x80\x80\x80\x80\x04\0";
    for encoding in [DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY] {
        refused(&Column::text(3, page(3, encoding, huge)).file(), "texts, where it has 3 values");
    }
    // A long text, and a million times its beginning, of which no length takes a bit.
    refused(
        &Column::text(1_000_000, craft::repeated_beginnings(1_000_000)).file(),
        "its texts take 4004",
    );
}

#[test]
fn s3_no_list_has_more_values_than_a_limit() {
    refused(&Column::listed(1 << 30, 1, craft::one_list(1 << 30)).file(), "its lists have");
    refused(
        &Column::listed(10, 1, craft::one_list(1 << 30)).file(),
        "more values than its column has",
    );
}

#[test]
fn pages_lie_in_their_column_and_columns_in_the_file() {
    let whole = Column::text(1, page(1, 0, b"\x01\0\0\0a"));
    refused(&Column { length: Some(1 << 40), ..whole.clone() }.file(), "lies outside the file");
    refused(&Column { length: Some(-1), ..whole.clone() }.file(), "lies outside the file");
    refused(&Column { length: Some(20), ..whole.clone() }.file(), "reach out of its column");
    refused(
        &Column { values: 3, rows: 3, ..whole.clone() }.file(),
        "a column ends after 1 of 3 rows",
    );
    refused(&Column { values: 0, ..whole }.file(), "more values than its column has");
}
