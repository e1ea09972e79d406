//! What a file is by its first bytes, where it is something else than what is to be read.

use std::path::Path;

use crate::error::StorageError;

/// Bytes that tell: the mark of a tar archive is behind its first name.
pub(super) const HEAD: usize = 512;

/// First bytes of gzip, which is read as what is in it.
pub(super) const GZIP: &[u8] = b"\x1f\x8b";
/// First bytes of Parquet.
pub(super) const PARQUET: &[u8] = b"PAR1";

/// First bytes, what they are of, and what to do. `FILE` stands for the path.
const KNOWN: [(&[u8], &str, &str); 16] = [
    (b"BZh", "bzip2", "decompress it first: bunzip2 FILE"),
    (b"\xfd7zXZ\0", "xz", "decompress it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd", "decompress it first: unzstd FILE"),
    (b"\x04\x22\x4d\x18", "lz4", "decompress it first: unlz4 FILE"),
    (b"PK\x03\x04", "zip (an archive, or an Excel workbook)", UNZIP),
    (b"PK\x05\x06", "zip, and empty", "look for the right file"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "unpack it first: 7z x FILE"),
    (b"Rar!", "rar", "unpack it first: unrar x FILE"),
    (b"\xff\xfe", "UTF-16", RECODE),
    (b"\xfe\xff", "UTF-16", RECODE),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", "run git lfs pull"),
    (PARQUET, "Parquet", "say so: data.format = \"parquet\""),
    (b"ORC", "ORC", WRITE),
    (b"Obj\x01", "Avro", WRITE),
    (b"ARROW1", "Arrow (Feather)", WRITE),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save it as CSV in UTF-8"),
];
const UNZIP: &str = "unpack it first: unzip FILE (save a workbook as CSV in UTF-8)";
const RECODE: &str = "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW";
const WRITE: &str = "write it as Parquet or CSV";
const PAGE: &str = "a web page (HTML) in place of the file";
const DOWNLOAD: &str = "download it again, by the link of the file itself";

/// What a file that begins with `head` is, if it is none of text.
pub(super) fn foreign(path: &Path, head: &[u8]) -> Option<StorageError> {
    let known = KNOWN.iter().find(|(start, ..)| head.starts_with(start));
    let (what, advice) = match known {
        Some((_, what, advice)) => (*what, *advice),
        None if head.get(257..262) == Some(b"ustar") => ("tar", "unpack it first: tar xf FILE"),
        None if is_html(head) => (PAGE, DOWNLOAD),
        None => return None,
    };
    let problem = format!("{what}: {}", advice.replace("FILE", &path.display().to_string()));
    Some(StorageError::table(path, problem))
}

/// What a file that begins with `head` is, if it is no Parquet.
pub(super) fn not_parquet(path: &Path, head: &[u8]) -> Option<StorageError> {
    if head.starts_with(PARQUET) {
        return None;
    }
    if head.starts_with(GZIP) {
        let problem = format!("gzip: decompress it first: gunzip {}", path.display());
        return Some(StorageError::table(path, problem));
    }
    let is_text = || {
        let text = std::str::from_utf8(head).or_else(|e| {
            // The last letter may be cut.
            std::str::from_utf8(
                head.get(..e.valid_up_to()).filter(|t| t.len() + 4 > head.len()).unwrap_or(b"\0"),
            )
        });
        !head.is_empty()
            && text.is_ok_and(|t| t.chars().all(|c| !c.is_control() || c.is_whitespace()))
    };
    foreign(path, head).or_else(|| {
        let problem = "text, and no Parquet file: if it is a table, say so: data.format = \"csv\"";
        is_text().then(|| StorageError::table(path, problem))
    })
}

fn is_html(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    [&b"<!doctype html"[..], b"<html"]
        .iter()
        .any(|start| text.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_first_bytes() {
        let path = Path::new("d/x.csv");
        let mut tar = [0; HEAD];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, words) in [
            (&b"BZh91AY&SY"[..], "d/x.csv: bzip2: decompress it first: bunzip2 d/x.csv"),
            (b"PK\x03\x04\x14", "zip"),
            (b"\xff\xfeu\0s\0", "UTF-16: make it UTF-8: iconv"),
            (b"\xfe\xff\0u", "UTF-16"),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"PAR1\x15", "data.format = \"parquet\""),
            (&tar, "tar xf d/x.csv"),
        ] {
            let error = foreign(path, head).unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
        for head in [&b"user,item"[..], b"", b"\xef\xbb\xbfuser", b"BX-Book", b"P"] {
            assert!(foreign(path, head).is_none(), "{head:?}");
        }
    }

    #[test]
    fn what_is_no_parquet() {
        let path = Path::new("x.parquet");
        for (head, words) in
            [("user,item\n1,é", "data.format = \"csv\""), ("BZh9", "bzip2"), ("\u{1f}", "gzip")]
        {
            let head = if words == "gzip" { GZIP } else { head.as_bytes() };
            let error = not_parquet(path, head).unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
        // A letter that is cut at the end is one of text.
        assert!(not_parquet(path, "user,item\n1,é".as_bytes().split_last().unwrap().1).is_some());
        for head in [&b"PAR1"[..], b"", b"\0\0\0\0", b"PAR\x01"] {
            assert!(not_parquet(path, head).is_none(), "{head:?}");
        }
    }
}
