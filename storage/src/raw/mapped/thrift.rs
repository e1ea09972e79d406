//! Thrift's compact protocol, as far as it takes to look at what Parquet writes in it.
//!
//! No length is trusted: nothing is allocated, and nothing is done more often than there are bytes.

/// Structures and lists within each other: a Parquet footer has about seven.
const MAX_DEPTH: usize = 16;

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The bytes end here.
    End,
    /// No encoding of anything.
    Damaged,
}

/// What a known field holds.
pub(super) enum Value {
    /// An integer of 16, 32 or 64 bits.
    Varint,
    /// An integer of 8 bits.
    Byte,
    Double,
    /// Bytes or text.
    Bytes,
    List(&'static Value),
    Struct(Fields),
}

/// The known fields of a structure: numbers, and what each of these holds.
pub(super) type Fields = &'static [(&'static [i64], Value)];

impl Value {
    /// Whether a value of this type is encoded so.
    fn is(&self, kind: u8) -> bool {
        match self {
            Self::Varint => (4..=6).contains(&kind),
            Self::Byte => kind == BYTE,
            Self::Double => kind == DOUBLE,
            Self::Bytes => kind == BINARY,
            Self::List(_) => kind == LIST,
            Self::Struct(_) => kind == STRUCT,
        }
    }
}

/// What is left to be read.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    depth: usize,
}

/// Types of values.
pub(super) const I32: u8 = 5;
pub(super) const STRUCT: u8 = 12;
const LIST: u8 = 9;
const BINARY: u8 = 8;
const DOUBLE: u8 = 7;
const BYTE: u8 = 3;
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, depth: 0 }
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Stop::End)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.take(1)?.first().copied().ok_or(Stop::End)
    }

    /// A number of things that are in memory, if they are there.
    pub(super) fn length(&mut self) -> Result<usize, Stop> {
        usize::try_from(self.varint()?).map_err(|_| Stop::End)
    }

    /// Bytes behind their number.
    fn skip_bytes(&mut self) -> Result<(), Stop> {
        let count = self.length()?;
        self.take(count).map(drop)
    }

    fn varint(&mut self) -> Result<u64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Damaged)
    }

    /// An integer of any width.
    pub(super) fn integer(&mut self) -> Result<i64, Stop> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Hands the number and the type of each field of a structure to `field`, which reads it (and then says
    /// so) or not.
    pub(super) fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, i64, u8) -> Result<bool, Stop>,
    ) -> Result<(), Stop> {
        self.deeper(|input| {
            let mut number: i64 = 0;
            loop {
                let head = input.byte()?;
                if head == 0 {
                    return Ok(());
                }
                let kind = head & 0x0f;
                number = match head >> 4 {
                    0 => input.integer()?,
                    step => number.saturating_add(i64::from(step)),
                };
                // Others would be cut down to 16 bits by the decoder.
                if !(0..=i64::from(i16::MAX)).contains(&number) {
                    return Err(Stop::Damaged);
                }
                if !field(input, number, kind)? {
                    input.skip(kind)?;
                }
            }
        })
    }

    /// Reads a structure for nothing but to see that it is one.
    pub(super) fn skip_struct(&mut self) -> Result<(), Stop> {
        self.fields(|_, _, _| Ok(false))
    }

    /// Reads a structure to see that it is one whose `known` fields hold what they must.
    pub(super) fn structure(&mut self, known: Fields) -> Result<(), Stop> {
        self.fields(|input, number, kind| {
            let Some((_, value)) = known.iter().find(|(numbers, _)| numbers.contains(&number))
            else {
                return Ok(false);
            };
            if !value.is(kind) {
                return Err(Stop::Damaged);
            }
            input.value(value)?;
            Ok(true)
        })
    }

    fn value(&mut self, value: &'static Value) -> Result<(), Stop> {
        match value {
            Value::Varint => self.varint().map(drop),
            Value::Byte => self.take(1).map(drop),
            Value::Double => self.take(8).map(drop),
            Value::Bytes => self.skip_bytes(),
            Value::Struct(known) => self.structure(known),
            Value::List(element) => {
                let (count, kind) = self.list()?;
                if count > 0 && !element.is(kind) {
                    return Err(Stop::Damaged);
                }
                self.deeper(|input| (0..count).try_for_each(|_| input.value(element)))
            }
        }
    }

    fn skip(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            // As a field a truth value is its type.
            TRUE | FALSE => Ok(()),
            _ => self.skip_value(kind),
        }
    }

    fn skip_value(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            TRUE | FALSE | BYTE => self.take(1).map(drop),
            4..=6 => self.varint().map(drop),
            DOUBLE => self.take(8).map(drop),
            BINARY => self.skip_bytes(),
            LIST | 10 => self.skip_list(),
            STRUCT => self.skip_struct(),
            // Maps: Parquet has none.
            _ => Err(Stop::Damaged),
        }
    }

    /// A list or a set. Of truth values in a list the decoder reads nothing where it skips them, and Parquet
    /// has none in what it writes of a file.
    fn skip_list(&mut self) -> Result<(), Stop> {
        let (count, kind) = self.list()?;
        if count > 0 && matches!(kind, TRUE | FALSE) {
            return Err(Stop::Damaged);
        }
        self.deeper(|input| (0..count).try_for_each(|_| input.skip_value(kind)))
    }

    /// The head of a list: how many values there are, and of which type.
    fn list(&mut self) -> Result<(u64, u8), Stop> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        // No value takes less than a byte.
        if count > self.bytes.len() as u64 {
            return Err(Stop::End);
        }
        Ok((count, head & 0x0f))
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Result<(), Stop>) -> Result<(), Stop> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Stop::Damaged);
        }
        read(self)?;
        self.depth -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_that_claim_more_than_there_is_are_refused() {
        // A list of truth values of a length of ten digits, and the same with four of them.
        for (bytes, expected) in [
            (&[0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0][..], Err(Stop::End)),
            (&[0x19, 0x41, 1, 2, 1, 2, 0], Err(Stop::Damaged)),
            (&[0x19, 0x43, 1, 2, 1, 2, 0], Ok(())),
            (&[0x19, 0x2c, 0, 0, 0], Ok(())),
            (&[0x19, 0x1b, 0, 0], Err(Stop::Damaged)),
        ] {
            assert_eq!(Input::new(bytes).skip_struct(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn structures_without_end_are_refused() {
        assert_eq!(Input::new(&[0x1c; 1000]).skip_struct(), Err(Stop::Damaged));
        assert_eq!(Input::new(&[0x19; 1000]).skip_struct(), Err(Stop::Damaged));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_structure_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Input::new(&bytes).skip_struct();
        }
    }
}
