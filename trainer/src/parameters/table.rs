//! The table that a model's parameters begin with, and which rank holds which of its rows.
//!
//! A batch reads few rows of it. So a table that is too large for one rank is shared out: row r is held,
//! with its optimizer state, by rank r mod W, and comes to others for the step that reads it (row-wise
//! sharding). Neighbouring rows, which are often as popular as each other, are then on different ranks.

/// The rows at the start of a flat parameter vector; none where all of it is dense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Number of rows.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
}

impl Table {
    /// Values of all rows: where the dense part starts.
    pub fn len(self) -> usize {
        self.rows * self.width
    }

    /// Whether there are no rows.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Parameters as an objective reads them.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// Rows of the table, one after the other.
    pub table: &'a [f32],
    /// The numbers of these rows, ascending; `None` where `table` has them all.
    pub rows: Option<&'a [u32]>,
    /// What is behind the table.
    pub dense: &'a [f32],
}

impl<'a> Parameters<'a> {
    /// All of a flat vector.
    pub fn whole(table: Table, flat: &'a [f32]) -> Self {
        let (table, dense) = flat.split_at(table.len());
        Self { table, rows: None, dense }
    }
}

/// The rows of a table that one rank holds: every row, or each `parts`-th from row `part` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableShare {
    table: Table,
    part: usize,
    parts: usize,
}

/// All rows of no table.
impl Default for TableShare {
    fn default() -> Self {
        Self::all(Table::default())
    }
}

impl TableShare {
    /// All rows.
    pub fn all(table: Table) -> Self {
        Self { table, part: 0, parts: 1 }
    }

    /// Part `part` of `parts` (at least 1, and more than `part`).
    pub fn part(table: Table, part: usize, parts: usize) -> Self {
        debug_assert!(part < parts, "a part is one of them");
        Self { table, part, parts }
    }

    /// The whole table.
    pub fn table(self) -> Table {
        self.table
    }

    /// Number of parts.
    pub fn parts(self) -> usize {
        self.parts
    }

    /// Whether these are all rows.
    pub fn is_all(self) -> bool {
        self.parts == 1
    }

    /// The rows held, as a table of their own.
    pub fn held(self) -> Table {
        let rows = self.table.rows.saturating_sub(self.part).div_ceil(self.parts);
        Table { rows, ..self.table }
    }

    /// The numbers of the rows held, in the order in which they are held.
    pub fn rows(self) -> impl Iterator<Item = usize> {
        (self.part..self.table.rows).step_by(self.parts)
    }

    /// The part that holds a row, and the row's number there.
    pub fn place(self, row: u32) -> (usize, u32) {
        // The number of parts is that of ranks.
        let parts = self.parts as u32;
        ((row % parts) as usize, row / parts)
    }

    /// The number in the table of a row that is held as number `held`.
    pub fn number(self, held: u32) -> usize {
        held as usize * self.parts + self.part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_each_row_once() {
        for (rows, parts) in [(0, 2), (1, 4), (7, 1), (7, 2), (8, 4), (9, 8)] {
            let table = Table { rows, width: 3 };
            let mut seen = vec![0; rows];
            for part in 0..parts {
                let share = TableShare::part(table, part, parts);
                assert_eq!(share.rows().count(), share.held().rows);
                for (held, row) in share.rows().enumerate() {
                    seen[row] += 1;
                    assert_eq!(share.number(held as u32), row);
                    assert_eq!(share.place(row as u32), (part, held as u32));
                }
            }
            assert_eq!(seen, vec![1; rows]);
        }
        assert!(TableShare::all(Table { rows: 3, width: 1 }).is_all());
    }
}
