//! Parquet files with one column in one row group, written field by field.

pub const DELTA_LENGTH_BYTE_ARRAY: i32 = 6;
pub const DELTA_BYTE_ARRAY: i32 = 7;
const PLAIN: i32 = 0;
const RLE: i32 = 3;
const BYTE_ARRAY: i64 = 6;
const REQUIRED: i64 = 0;
const REPEATED: i64 = 2;

const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Thrift's compact protocol.
#[derive(Default)]
struct Thrift {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn zigzag(value: i64) -> Vec<u8> {
    varint(((value << 1) ^ (value >> 63)) as u64)
}

impl Thrift {
    fn of(write: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut thrift = Self::default();
        thrift.inside(write);
        thrift.bytes
    }

    /// The fields of a structure, and its end.
    fn inside(&mut self, write: impl FnOnce(&mut Self)) {
        self.last.push(0);
        write(self);
        self.last.pop();
        self.bytes.push(0);
    }

    fn field(&mut self, number: u8, kind: u8) {
        let last = self.last.last_mut().unwrap();
        self.bytes.push((number - *last) << 4 | kind);
        *last = number;
    }

    fn int(&mut self, number: u8, kind: u8, value: i64) {
        self.field(number, kind);
        self.bytes.extend(zigzag(value));
    }

    fn text(&mut self, number: u8, text: &str) {
        self.field(number, BINARY);
        self.bytes.extend(varint(text.len() as u64));
        self.bytes.extend(text.as_bytes());
    }

    fn structure(&mut self, number: u8, write: impl FnOnce(&mut Self)) {
        self.field(number, STRUCT);
        self.inside(write);
    }

    fn list(&mut self, number: u8, kind: u8, len: u64) {
        self.field(number, LIST);
        self.bytes.push(0xf0 | kind);
        self.bytes.extend(varint(len));
    }
}

/// A column, and what the footer says of it.
#[derive(Clone)]
pub struct Column {
    pub repetition: i64,
    pub codec: i64,
    pub values: i64,
    pub rows: i64,
    /// Bytes of the pages, where it is not said as it is.
    pub length: Option<i64>,
    /// Whether the first page is a dictionary.
    pub dictionary: bool,
    pub pages: Vec<u8>,
}

impl Column {
    /// Required text, not compressed.
    pub fn text(values: i64, pages: Vec<u8>) -> Self {
        let (repetition, rows) = (REQUIRED, values);
        Self { repetition, codec: 0, values, rows, length: None, dictionary: false, pages }
    }

    /// Lists of text.
    pub fn listed(values: i64, rows: i64, pages: Vec<u8>) -> Self {
        Self { repetition: REPEATED, rows, ..Self::text(values, pages) }
    }

    pub fn file(&self) -> Vec<u8> {
        self.around(&self.footer(1, 0))
    }

    /// A footer whose list of row groups says to be longer.
    pub fn claiming_groups(&self, groups: u64) -> Vec<u8> {
        self.around(&self.footer(groups, 0))
    }

    /// A footer with a list of truth values that says to be longer.
    pub fn with_truths(&self, truths: u64) -> Vec<u8> {
        self.around(&self.footer(1, truths))
    }

    /// The first, inside of what says to be text where the version must be: who reads a number there reads
    /// the rest as the fields that follow.
    pub fn hiding_groups(&self, groups: u64) -> Vec<u8> {
        let footer = self.footer(groups, 0);
        let hidden = &footer[2..];
        assert!(hidden.len() < 128, "its length is one byte");
        self.around(&[&[0x18, hidden.len() as u8], hidden, &[0]].concat())
    }

    fn around(&self, footer: &[u8]) -> Vec<u8> {
        let len = (footer.len() as u32).to_le_bytes();
        [b"PAR1", self.pages.as_slice(), footer, &len, b"PAR1"].concat()
    }

    fn footer(&self, groups: u64, truths: u64) -> Vec<u8> {
        Thrift::of(|file| {
            file.int(1, I32, 1);
            file.list(2, STRUCT, 2);
            file.inside(|root| {
                root.text(4, "r");
                root.int(5, I32, 1);
            });
            file.inside(|leaf| {
                leaf.int(1, I32, BYTE_ARRAY);
                leaf.int(3, I32, self.repetition);
                leaf.text(4, "x");
            });
            file.int(3, I64, self.rows);
            file.list(4, STRUCT, groups);
            file.inside(|group| {
                group.list(1, STRUCT, 1);
                group.inside(|chunk| {
                    chunk.int(2, I64, 4);
                    chunk.structure(3, |data| self.metadata(data));
                });
                group.int(2, I64, self.pages.len() as i64);
                group.int(3, I64, self.rows);
            });
            if truths > 0 {
                file.list(12, 1, truths);
            }
        })
    }

    fn metadata(&self, data: &mut Thrift) {
        data.int(1, I32, BYTE_ARRAY);
        data.list(2, I32, 1);
        data.bytes.extend(zigzag(PLAIN.into()));
        data.list(3, BINARY, 1);
        data.bytes.extend(b"\x01x");
        data.int(4, I32, self.codec);
        data.int(5, I64, self.values);
        data.int(6, I64, self.pages.len() as i64);
        data.int(7, I64, self.length.unwrap_or(self.pages.len() as i64));
        data.int(9, I64, 4);
        if self.dictionary {
            data.int(11, I64, 4);
        }
    }
}

/// A data page of the first version.
pub fn page(values: i32, encoding: i32, bytes: &[u8]) -> Vec<u8> {
    sized(values, encoding, bytes.len() as i32, bytes)
}

/// A data page that says to unpack to `size` bytes.
pub fn sized(values: i32, encoding: i32, size: i32, bytes: &[u8]) -> Vec<u8> {
    let header = Thrift::of(|page| {
        page.int(1, I32, 0);
        page.int(2, I32, size.into());
        page.int(3, I32, bytes.len() as i64);
        page.structure(5, |data| {
            data.int(1, I32, values.into());
            data.int(2, I32, encoding.into());
            data.int(3, I32, RLE.into());
            data.int(4, I32, RLE.into());
        });
    });
    [&header, bytes].concat()
}

pub fn dictionary(values: i32, bytes: &[u8]) -> Vec<u8> {
    let header = Thrift::of(|page| {
        page.int(1, I32, 2);
        page.int(2, I32, bytes.len() as i64);
        page.int(3, I32, bytes.len() as i64);
        page.structure(7, |data| {
            data.int(1, I32, values.into());
            data.int(2, I32, PLAIN.into());
        });
    });
    [&header, bytes].concat()
}

/// One list of so many nulls, in runs of a few bytes.
pub fn one_list(values: i32) -> Vec<u8> {
    let levels = |runs: &[u8]| [&(runs.len() as u32).to_le_bytes()[..], runs].concat();
    let rest = varint((values as u64 - 1) << 1);
    let repeated = levels(&[&[2, 0][..], &rest, &[1]].concat());
    let defined = levels(&[&varint((values as u64) << 1)[..], &[0]].concat());
    page(values, PLAIN, &[repeated, defined].concat())
}

/// So many texts: 4,000 bytes, and then each as the one before, in blocks of which no length takes a bit.
pub fn repeated_beginnings(values: i32) -> Vec<u8> {
    // One block for all, in one part: the first length, the same difference to the next one, and none to others
    // would take bits; so two blocks of 128 come first.
    let count = varint(values as u64);
    let lengths = |first: i64, second: i64| {
        let mut bytes = [&varint(128)[..], &varint(1), &count, &zigzag(first)].concat();
        let blocks = (values as usize - 1).div_ceil(128);
        for block in 0..blocks {
            if block == 0 {
                // The first difference alone is not zero: 16 bits each.
                let (least, difference) =
                    if second < first { (second - first, 0) } else { (0, second - first) };
                bytes.extend(zigzag(least));
                bytes.push(16);
                let others = (0 - least) as u16;
                bytes.extend((difference as u16).to_le_bytes());
                (1..128).for_each(|_| bytes.extend(others.to_le_bytes()));
            } else {
                bytes.extend([0, 0]);
            }
        }
        bytes
    };
    let bytes = [lengths(0, 4000), lengths(4000, 0), vec![b'x'; 4000]].concat();
    page(values, DELTA_BYTE_ARRAY, &bytes)
}
