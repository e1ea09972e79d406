//! Quotes of a CSV file that do not pair up.
//!
//! The reader of CSV takes everything up to the next quote, or to the end of the file, for one value: a stray
//! quote swallows rows without a word. So the bytes it reads are looked at on their way.

/// Where in a value the bytes read so far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before its first byte.
    Start,
    /// In one without quotes, where a quote is a character like others.
    Plain,
    /// Between its quotes.
    Quoted,
    /// Behind a quote that ends it, or is the first of two that stand for one.
    Closed,
}

/// Looks at the bytes of a file, in order.
#[derive(Debug)]
pub(super) struct Quotes {
    delimiter: u8,
    state: State,
    /// Line of the last byte, from 1.
    line: u64,
    /// Line on which the last quoted value began.
    begun: u64,
    /// Line on which the first value began whose quotes do not pair up.
    stray: Option<u64>,
}

impl Quotes {
    pub(super) fn new(delimiter: u8) -> Self {
        Self { delimiter, state: State::Start, line: 1, begun: 1, stray: None }
    }

    /// Line on which a value begins that ends on another one, and is followed by what can't follow a value.
    pub(super) fn stray(&self) -> Option<u64> {
        self.stray
    }

    /// At the end of the file: line on which a value begins that has not ended.
    pub(super) fn open(&self) -> Option<u64> {
        (self.state == State::Quoted).then_some(self.begun)
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        // Most pieces have none.
        if self.state != State::Quoted && self.state != State::Closed && !bytes.contains(&b'"') {
            self.line += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            if let Some(last) = bytes.last() {
                self.state = if self.ends(*last) { State::Start } else { State::Plain };
            }
            return;
        }
        for byte in bytes {
            self.state = self.after(*byte);
            self.line += u64::from(*byte == b'\n');
        }
    }

    fn ends(&self, byte: u8) -> bool {
        byte == self.delimiter || matches!(byte, b'\n' | b'\r')
    }

    fn after(&mut self, byte: u8) -> State {
        match (self.state, byte) {
            (State::Start, b'"') => {
                self.begun = self.line;
                State::Quoted
            }
            (State::Quoted, b'"') => State::Closed,
            (State::Quoted, _) | (State::Closed, b'"') => State::Quoted,
            (_, byte) if self.ends(byte) => State::Start,
            (State::Closed, _) => {
                if self.begun != self.line {
                    self.stray.get_or_insert(self.begun);
                }
                State::Plain
            }
            _ => State::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_that_do_not_pair_up_are_found() {
        let cases: [(&str, Option<u64>, Option<u64>); 11] = [
            ("", None, None),
            ("a,b\n1,2\n", None, None),
            ("a,\"b\nc\",d\n", None, None),
            ("a,\"b \"\"c\"\" d\"\n", None, None),
            // Characters like others.
            ("a,5\" disc\nb,\"\n\"\n", None, None),
            ("a,\"b\"c\n", None, None),
            ("a,\"b\"\n", None, None),
            ("a\nb,\"c\nd,e\n", None, Some(2)),
            ("a\n\"b", None, Some(2)),
            ("a\nb,\"c\nd,\"e\"\n", Some(2), None),
            ("a\r\nb,\"c\r\nd,\"e\"\r\nf,\"g\r\n", Some(2), Some(4)),
        ];
        for (text, stray, open) in cases {
            for piece in [1, 2, 3, 100] {
                let mut quotes = Quotes::new(b',');
                text.as_bytes().chunks(piece).for_each(|bytes| quotes.read(bytes));
                assert_eq!((quotes.stray(), quotes.open()), (stray, open), "{text:?} by {piece}");
            }
        }
    }
}
