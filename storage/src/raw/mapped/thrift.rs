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

/// What is left to be read.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    depth: usize,
}

/// Types of values.
pub(super) const I32: u8 = 5;
pub(super) const STRUCT: u8 = 12;
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, depth: 0 }
    }

    /// Bytes that have not been read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len()
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.bytes.split_first().ok_or(Stop::End)?;
        self.bytes = rest;
        Ok(*first)
    }

    fn skip_bytes(&mut self, count: u64) -> Result<(), Stop> {
        let count = usize::try_from(count).map_err(|_| Stop::End)?;
        self.bytes = self.bytes.get(count..).ok_or(Stop::End)?;
        Ok(())
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

    fn skip(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            // As a field a truth value is its type.
            TRUE | FALSE => Ok(()),
            _ => self.skip_value(kind),
        }
    }

    fn skip_value(&mut self, kind: u8) -> Result<(), Stop> {
        match kind {
            TRUE | FALSE | 3 => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let len = self.varint()?;
                self.skip_bytes(len)
            }
            9 | 10 => self.skip_list(),
            STRUCT => self.skip_struct(),
            // Maps: Parquet has none.
            _ => Err(Stop::Damaged),
        }
    }

    /// A list or a set.
    fn skip_list(&mut self) -> Result<(), Stop> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        // No value takes less than a byte.
        if count > self.left() as u64 {
            return Err(Stop::End);
        }
        self.deeper(|input| (0..count).try_for_each(|_| input.skip_value(head & 0x0f)))
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
            (&[0x19, 0x41, 1, 2, 1, 2, 0], Ok(())),
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
