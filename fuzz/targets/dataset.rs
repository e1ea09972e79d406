//! Datasets: columns of any content, in a shard that is whole. What opens must answer everything.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use reclora_fuzz::{DATASET_COLUMNS as COLUMNS, choice, piece, scratch};
use reclora_storage::dataset::{self, Dataset};
use reclora_storage::shard::{Column, write_shard};

fuzz_target!(|data: &[u8]| {
    let (_, mut rest) = choice(data);
    let (mut u32s, mut u64s) = (vec![Vec::new(); 16], vec![Vec::new(); 16]);
    let mut u8s = vec![Vec::new(); 16];
    for (i, (_, kind)) in COLUMNS.iter().enumerate() {
        let (bytes, after) = piece(rest);
        rest = after;
        match kind {
            1 => u8s[i] = bytes.to_vec(),
            4 => u32s[i] = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            _ => u64s[i] = bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
        }
    }
    let columns: Vec<_> = COLUMNS
        .iter()
        .enumerate()
        .map(|(i, (name, kind))| {
            let column = match kind {
                1 => Column::U8(&u8s[i]),
                4 => Column::U32(&u32s[i]),
                _ => Column::U64(&u64s[i]),
            };
            (*name, column)
        })
        .collect();
    let path = scratch().join(dataset::FILE);
    write_shard(&path, dataset::KIND, &columns).expect("columns that can be written");
    let Ok(dataset) = Dataset::open(scratch()) else { return };
    let mut ids = Vec::new();
    for index in 0..dataset.num_samples().min(100) {
        let sample = dataset.sample(index).expect("a sample that exists");
        let history = dataset.history(sample.user, sample.position);
        assert_eq!(history.items.len(), sample.position as usize);
        ids.clear();
        dataset.feature_ids(sample.user, sample.item, &mut ids);
        assert!(ids.iter().all(|id| (*id as usize) < dataset.num_features()));
        assert!((dataset.rating_feature(sample.rating) as usize) < dataset.num_features());
    }
    for item in 0..dataset.num_items().min(100) as u32 {
        assert_eq!(dataset.item_index(dataset.item_key(item)), Some(item));
        for column in dataset.item_text_columns() {
            assert!(dataset.item_text(item, column).is_some());
        }
    }
    for user in 0..dataset.num_users().min(100) as u32 {
        assert_eq!(dataset.user_index(dataset.user_key(user)), Some(user));
        black_box(dataset.user_len(user));
    }
});
