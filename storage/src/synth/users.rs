//! Users: how much they rate, what, when and how.

use std::fmt::Write;

use super::SynthSpec;
use super::films::{Films, NUM_GENRES};
use super::random::Stream;

/// The first day of the published ratings, and the seconds up to the last.
const START: i64 = 789_652_009;
const SPAN: u32 = 784_600_000;
/// Films drawn before the nearest free one is taken: a user who has rated almost everything would
/// draw for ever.
const DRAWS: u32 = 32;

/// How many ratings each user has: at least one, at most one per item, in sum exactly as many as
/// asked for, and few users have most of them.
pub(super) fn counts(spec: &SynthSpec) -> Vec<u32> {
    let weight = |user: u32| {
        let spread = 1.1 * Stream::new(spec.seed, 4, user.into()).normal();
        // A power of two by squaring is the same on every machine; `exp` need not be.
        let base = 1.0 + spread / 16.0;
        (0..4).fold(base.max(0.1), |power, _| power * power)
    };
    let total: f64 = (0..spec.users).map(weight).sum();
    let more = spec.ratings - u64::from(spec.users);
    let (mut sum, mut given) = (0.0, 0_u64);
    let mut counts: Vec<u32> = Vec::with_capacity(spec.users as usize);
    for user in 0..spec.users {
        sum += weight(user);
        let due = match user + 1 == spec.users {
            true => more,
            false => ((sum / total * more as f64) as u64).clamp(given, more),
        };
        // What a user has no items for goes to those who come later.
        let count = (due - given).min(u64::from(spec.items) - 1);
        given += count;
        counts.push(count as u32 + 1);
    }
    let mut left = more - given;
    for count in &mut counts {
        let room = u64::from(spec.items - *count).min(left);
        *count += room as u32;
        left -= room;
    }
    counts
}

/// One user.
pub(super) struct User {
    user: u32,
    random: Stream,
    /// Stars above or below the average.
    kindness: f64,
    /// Liking of each genre at the user's first rating, and how much it is another at the last.
    taste: [(f64, f64); NUM_GENRES],
}

impl User {
    pub(super) fn new(user: u32, seed: u64) -> Self {
        let mut random = Stream::new(seed, 5, user.into());
        let kindness = 0.35 * random.normal();
        let taste = std::array::from_fn(|_| (0.8 * random.normal(), 0.5 * random.normal()));
        Self { user, random, kindness, taste }
    }

    /// Appends `count` lines for different films, by film as in the published file. `rated` has the
    /// last user who rated each film.
    pub(super) fn rate(mut self, count: u32, films: &Films, rated: &mut [u32], text: &mut String) {
        let first = START + i64::from(self.random.below(SPAN));
        let left = (START + i64::from(SPAN) - first) as u32;
        // Most users come for a short while; one in eight comes back over years.
        let stay = if self.random.below(8) == 0 { left } else { left.min(3600 + count * 60) };
        let mut items: Vec<u32> = (0..count).map(|_| self.choose(films, rated)).collect();
        items.sort_unstable();
        for item in items {
            let when = self.random.below(stay.max(1));
            let stars = self.stars(item, f64::from(when) / f64::from(stay.max(1)), films);
            let (user, id, time) = (self.user + 1, Films::id(item), first + i64::from(when));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{user},{id},{}.{},{time}", stars / 2, stars % 2 * 5);
        }
    }

    /// A film that the user has not rated: of two by popularity, the one that is more to the taste.
    fn choose(&mut self, films: &Films, rated: &mut [u32]) -> u32 {
        let free = |item: u32, rated: &[u32]| {
            rated.get(item as usize).is_some_and(|last| *last != self.user)
        };
        let mut item = films.draw(&mut self.random);
        let other = films.draw(&mut self.random);
        if self.liking(films, other) > self.liking(films, item) {
            item = other;
        }
        for _ in 0..DRAWS {
            if free(item, rated) {
                break;
            }
            item = films.draw(&mut self.random);
        }
        // At most as many ratings as films: one of the next is free.
        while !free(item, rated) {
            item = (item + 1) % films.len();
        }
        if let Some(last) = rated.get_mut(item as usize) {
            *last = self.user;
        }
        item
    }

    fn liking(&self, films: &Films, item: u32) -> f64 {
        let taste = self.taste.get(usize::from(films.film(item).genre));
        taste.map_or(0.0, |(liking, _)| *liking)
    }

    /// Half stars from 1 to 10, at a moment from 0 to 1 of the user's time.
    fn stars(&mut self, item: u32, moment: f64, films: &Films) -> u32 {
        let film = films.film(item);
        let taste = self.taste.get(usize::from(film.genre)).copied().unwrap_or_default();
        let liking = taste.0 + moment * taste.1;
        let noise = 0.7 * self.random.normal();
        let stars = 3.2 + self.kindness + f64::from(film.quality) + liking + noise;
        (stars * 2.0).round().clamp(1.0, 10.0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::Titles;
    use super::*;

    #[test]
    fn counts_are_exact_whatever_is_asked_for() {
        for (users, items, ratings) in
            [(1, 1, 1), (3, 5, 3), (3, 5, 15), (3, 5, 14), (100, 40, 3999), (500, 1000, 20_000)]
        {
            let counts =
                counts(&SynthSpec { users, items, ratings, seed: 3, titles: Titles::Plain });
            assert_eq!(counts.len() as u32, users);
            assert!(counts.iter().all(|c| (1..=items).contains(c)), "{counts:?}");
            assert_eq!(counts.iter().map(|c| u64::from(*c)).sum::<u64>(), ratings);
        }
    }

    #[test]
    fn few_users_have_most_ratings() {
        let mut counts = counts(&SynthSpec {
            users: 1000,
            items: 10_000,
            ratings: 150_000,
            seed: 3,
            titles: Titles::Plain,
        });
        counts.sort_unstable();
        let top: u32 = counts[800..].iter().sum();
        assert!(top > 60_000, "the top fifth has {top} of 150,000");
    }
}
