//! The ratings of the core, sorted: user by user, and as samples in global time order.
//!
//! Both orders come from sorting packed numbers, whose fields are as wide as the dataset needs.

use super::core::{Appearances, Core, at, inverse};
use crate::error::{Result, StorageError};
use crate::raw::RawTables;
use crate::raw::time::{NANOS, utc};
use crate::spill::{Sorter, Spill, SpillVec};

/// Ratings and samples, see [`super::Prepared`].
pub(super) struct Columns {
    pub(super) user_offsets: Vec<u64>,
    pub(super) item: SpillVec<u32>,
    pub(super) rating: SpillVec<u8>,
    pub(super) timestamp: SpillVec<i64>,
    pub(super) sample: SpillVec<u32>,
    pub(super) positive: u64,
}

impl Columns {
    /// Empty ones, before the first user.
    pub(super) fn new(spill: &Spill) -> Self {
        fn column<T: bytemuck::Pod>(spill: &Spill) -> SpillVec<T> {
            SpillVec::new(spill, spill.rows(1, PARTS * size_of::<T>()))
        }
        Self {
            user_offsets: vec![0],
            item: column(spill),
            rating: column(spill),
            timestamp: column(spill),
            sample: column(spill),
            positive: 0,
        }
    }
}

/// What the columns are made with.
pub(super) struct Order<'a> {
    pub(super) raw: &'a RawTables,
    pub(super) core: &'a Core,
    pub(super) users: &'a Appearances,
    pub(super) items: &'a Appearances,
    pub(super) likes: &'a [bool],
    pub(super) min_history: u32,
    pub(super) spill: &'a Spill,
}

/// Eighths of the memory that each of the two sorters may take.
const SHARE: usize = 3;
/// The columns together take an eighth at most: each this part of one.
const PARTS: usize = 4;

impl Order<'_> {
    /// The ratings by (user, timestamp, item), users in the order of their first ratings, and the
    /// samples by (timestamp, user, item). Times are sorted in nanoseconds and kept in seconds.
    pub(super) fn columns(&self) -> Result<Columns> {
        let packing = Packing::new(self)?;
        let sorted = self.by_user(&packing)?;
        let item_of_rank = inverse(&self.items.ranks);
        let mut columns = Columns::new(self.spill);
        let room = self.spill.rows(SHARE, size_of::<u128>());
        let mut samples = Sorter::new(self.spill, room, self.core.ratings);
        let mut row = 0_u32;
        sorted.for_each(|packed| {
            let (user, time, rank, level) = packing.unpack(packed);
            while columns.user_offsets.len() <= user as usize {
                columns.user_offsets.push(u64::from(row));
            }
            columns.item.push(at(&self.items.index, at(&item_of_rank, rank)))?;
            columns.rating.push(level)?;
            let time_given = packing.first.wrapping_add_unsigned(time);
            columns.timestamp.push(time_given.div_euclid(NANOS))?;
            let start = columns.user_offsets.get(user as usize).copied().unwrap_or_default();
            if u64::from(row) - start >= u64::from(self.min_history) {
                // A user's rows are in the order of their times and items.
                let user_rank = at(&self.users.ranks, at(&self.users.kept, user));
                let moment = (u128::from(time) << packing.users) | u128::from(user_rank);
                samples.push((moment << u32::BITS) | u128::from(row))?;
                columns.positive += u64::from(self.likes.get(usize::from(level)) == Some(&true));
            }
            row += 1;
            Ok(())
        })?;
        // The end of the last user; without any, of none.
        if row > 0 {
            columns.user_offsets.push(u64::from(row));
        }
        samples.for_each(|packed| columns.sample.push(packed as u32))?;
        Ok(columns)
    }

    fn by_user(&self, packing: &Packing) -> Result<Sorter> {
        let room = self.spill.rows(SHARE, size_of::<u128>());
        let mut sorter = Sorter::new(self.spill, room, self.core.ratings);
        self.raw.ratings.for_each(|rating| {
            if !self.core.has(&rating) {
                return Ok(());
            }
            let user = at(&self.users.index, rating.user);
            let rank = at(&self.items.ranks, rating.item);
            sorter.push(packing.pack(user, rating.timestamp, rank, rating.level))
        })?;
        Ok(sorter)
    }
}

/// How user, time, item and level share a number. Level is lowest, in 8 bits.
struct Packing {
    /// The time that counts as 0.
    first: i64,
    /// Bits of each field.
    users: u32,
    times: u32,
    items: u32,
}

impl Packing {
    fn new(order: &Order<'_>) -> Result<Self> {
        let (first, last) = order.core.times.unwrap_or_default();
        let bits = |largest: u64| u64::BITS - largest.leading_zeros();
        let users = bits(order.users.ranks.len() as u64);
        let items = bits(order.items.ranks.len() as u64);
        let times = bits(last.abs_diff(first));
        if users + times + items + u8::BITS > u128::BITS || users + times + u32::BITS > u128::BITS {
            let problem = format!(
                "times from {} to {} are too far apart for so many users and items",
                utc(first.div_euclid(NANOS)),
                utc(last.div_euclid(NANOS))
            );
            return Err(StorageError::Protocol { setting: "path", problem });
        }
        Ok(Self { first, users, times, items })
    }

    fn pack(&self, user: u32, time: i64, item: u32, level: u8) -> u128 {
        let time = time.abs_diff(self.first);
        let packed = (u128::from(user) << self.times) | u128::from(time);
        (((packed << self.items) | u128::from(item)) << u8::BITS) | u128::from(level)
    }

    fn unpack(&self, packed: u128) -> (u32, u64, u32, u8) {
        let field = |shift: u32, bits: u32| (packed >> shift) & ((1 << bits) - 1);
        let item = field(u8::BITS, self.items);
        let time = field(u8::BITS + self.items, self.times);
        let user = packed >> (u8::BITS + self.items + self.times);
        (user as u32, time as u64, item as u32, packed as u8)
    }
}
