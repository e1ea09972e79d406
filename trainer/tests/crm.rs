//! The CRM against finite differences and a per-sample loop, and its file.

use crate::ranks::with_ranks;
use proptest::prelude::*;
use reclora_comm::{Communicator, tree};
use reclora_trainer::config::{CrmConfig, Representation};
use reclora_trainer::crm::{Crm, CrmInput, CrmShape, TrainedCrm, Workspace};
use reclora_trainer::error::{Remedy, TrainerError};
use reclora_trainer::parameters::{Gradient, GradientSum, Losses, Parameters, TableShare};
use reclora_trainer::training::exchange::{Rows, gather_rows};

const FEATURES: u32 = 30;

#[derive(Clone, Debug)]
struct Sample {
    fields: Vec<u32>,
    items: Vec<u32>,
    ratings: Vec<u32>,
    numbers: Vec<f32>,
    similarities: Vec<f32>,
    label: f32,
}

impl Sample {
    fn input(&self) -> CrmInput<'_> {
        CrmInput {
            fields: &self.fields,
            history_items: &self.items,
            history_ratings: &self.ratings,
            numbers: &self.numbers,
            similarities: &self.similarities,
        }
    }
}

/// One per item.
fn similarities(items: &[u32]) -> Vec<f32> {
    items.iter().map(|item| (*item as f32).sin()).collect()
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let feature = 0..FEATURES;
    let pairs = prop::collection::vec((feature.clone(), feature.clone()), 0..6);
    let numbers = prop::collection::vec(-2f32..2.0, 2);
    let sample = (prop::collection::vec(feature, 3), pairs, numbers, any::<bool>());
    let sample = sample.prop_map(|(fields, pairs, numbers, label)| {
        let (items, ratings): (Vec<u32>, _) = pairs.into_iter().unzip();
        let similarities = similarities(&items);
        Sample { fields, items, ratings, numbers, similarities, label: f32::from(u8::from(label)) }
    });
    prop::collection::vec(sample, 1..5)
}

fn crm(dropout: f32, representation: Representation) -> Crm {
    let config = CrmConfig {
        embedding_dim: 3,
        hidden_dim: 5,
        num_layers: 2,
        num_attention_layers: 2,
        dropout,
        representation,
        ..CrmConfig::default()
    };
    let shape = CrmShape {
        features: FEATURES as usize,
        fields: 3,
        item_field: 1,
        user_field: 0,
        numbers: 2,
        similarities: true,
    };
    Crm::new(&config, shape).unwrap()
}

/// Larger than the real initial values: gradients that can be told from rounding.
fn parameters(crm: &Crm, seed: u64) -> Vec<f32> {
    crm.init(seed).into_iter().enumerate().map(|(i, v)| v + 0.05 * ((i % 7) as f32 - 3.0)).collect()
}

/// The loss, and its gradient as one flat vector.
fn loss(crm: &Crm, parameters: &[f32], samples: &[Sample]) -> (f32, Vec<f32>) {
    let inputs: Vec<_> = samples.iter().map(Sample::input).collect();
    let labels: Vec<_> = samples.iter().map(|sample| sample.label).collect();
    let keys: Vec<_> = (0..samples.len() as u64).collect();
    let ws = &mut Workspace::default();
    let mut gradient = Gradient::zero(crm.table(), crm.num_parameters() - crm.table().len());
    let parameters = Parameters::whole(crm.table(), parameters);
    let loss =
        crm.loss_and_gradient(parameters, ws, &inputs, &labels, &keys, 9, 1.0, &mut gradient);
    let (sum, table) = (gradient.sum(loss.into()), crm.table());
    let mut flat = vec![0.0; table.len()];
    for (row, values) in sum.rows().iter().zip(sum.values().chunks(table.width)) {
        flat[*row as usize * table.width..][..table.width].copy_from_slice(values);
    }
    flat.extend_from_slice(sum.dense());
    (loss, flat)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn gradients_equal_finite_differences(
        samples in samples(), seed in 0u64..1000, dropout in prop::bool::ANY,
    ) {
        let crm = crm(if dropout { 0.3 } else { 0.0 }, Representation::Final);
        let parameters = parameters(&crm, seed);
        let (_, gradient) = loss(&crm, &parameters, &samples);
        for index in (0..parameters.len()).step_by(3) {
            let at = |step: f32| {
                let mut moved = parameters.clone();
                moved[index] += step;
                f64::from(loss(&crm, &moved, &samples).0)
            };
            let value = f64::from(gradient[index]);
            // ReLU has kinks, where a difference is no slope: a small step to one side misses them.
            let here = at(0.0);
            let slopes = [4e-3_f32, 1e-3, 3e-4, -4e-3, -1e-3, -3e-4].map(|step| {
                (at(step) - here) / f64::from((parameters[index] + step) - parameters[index])
            });
            prop_assert!(
                slopes.iter().any(|slope| (slope - value).abs() < 3e-3),
                "parameter {index}: {slopes:?} by differences, {value} by the backward"
            );
        }
    }

    #[test]
    fn a_batch_equals_its_samples_one_by_one(samples in samples(), seed in 0u64..1000) {
        for representation in [Representation::Final, Representation::Hidden, Representation::User] {
            let crm = crm(0.2, representation);
            let parameters = parameters(&crm, seed);
            let ws = &mut Workspace::default();
            let inputs: Vec<_> = samples.iter().map(Sample::input).collect();
            let parameters = Parameters::whole(crm.table(), &parameters);
            let (logits, representations) = crm.score(parameters, ws, &inputs);
            prop_assert_eq!(representations.len(), inputs.len() * crm.representation_dim());
            for (index, input) in inputs.iter().enumerate() {
                let (logit, one) = crm.score(parameters, ws, &[*input]);
                prop_assert!((logit[0] - logits[index]).abs() < 1e-5);
                let dim = crm.representation_dim();
                for (a, b) in one.iter().zip(&representations[index * dim..]) {
                    prop_assert!((a - b).abs() < 1e-5);
                }
            }
        }
    }
}

/// D-1: several micro-batches in one pass give the loss and the gradient, to the bit, that they give one at a time and
/// added in the order of the tree; in a network large enough for its weights' gradients to be summed in tiles.
#[test]
fn d1_micro_batches_at_once_are_those_of_the_tree() {
    let config = CrmConfig {
        embedding_dim: 24,
        hidden_dim: 150,
        num_layers: 2,
        num_attention_layers: 2,
        dropout: 0.1,
        ..CrmConfig::default()
    };
    let shape = CrmShape {
        features: FEATURES as usize,
        fields: 3,
        item_field: 1,
        user_field: 0,
        numbers: 2,
        similarities: true,
    };
    let crm = Crm::new(&config, shape).unwrap();
    let (flat, dense) = (parameters(&crm, 5), crm.num_parameters() - crm.table().len());
    let parameters = Parameters::whole(crm.table(), &flat);
    let feature = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % FEATURES;
    let sample = |key: &u64| Sample {
        fields: (0..3).map(|place| feature(key * 100 + place)).collect(),
        items: (0..key % 7).map(|place| feature(key * 100 + 10 + place)).collect(),
        ratings: (0..key % 7).map(|place| feature(key * 100 + 20 + place)).collect(),
        numbers: vec![(key % 5) as f32 - 2.0, 0.3],
        similarities: (0..key % 7).map(|place| (*key as f32 + place as f32).sin()).collect(),
        label: (key % 2) as f32,
    };
    let compute = |keys: &[u64], mut gradient: Gradient| {
        let samples: Vec<_> = keys.iter().map(sample).collect();
        let inputs: Vec<_> = samples.iter().map(Sample::input).collect();
        let labels: Vec<_> = samples.iter().map(|sample| sample.label).collect();
        let ws = &mut Workspace::default();
        let loss =
            crm.loss_and_gradient(parameters, ws, &inputs, &labels, keys, 9, 0.1, &mut gradient);
        gradient.sum(loss.into())
    };
    let bits = |sum: &GradientSum| {
        let Losses { training, .. } = sum.losses;
        let values = sum.values().iter().chain(sum.dense()).chain([&training]);
        (sum.rows().to_vec(), values.map(|value| value.to_bits()).collect::<Vec<_>>())
    };
    // Of sizes between which products differ in their way through the kernels; some without any history.
    for sizes in [vec![32; 8], vec![20, 0, 9, 3], vec![6, 7], vec![1, 1, 1, 1], vec![200, 300]] {
        let ends: Vec<usize> = (1..=sizes.len()).map(|part| sizes[..part].iter().sum()).collect();
        let keys: Vec<u64> = (0..ends[sizes.len() - 1] as u64).collect();
        let alone = ends.iter().zip(&sizes).map(|(end, size)| {
            compute(&keys[end - size..*end], Gradient::zero(crm.table(), dense))
        });
        let alone = tree::fold(alone.collect(), |left, right| left.add(&right)).unwrap();
        let inner = ends[..sizes.len() - 1].to_vec();
        let together = compute(&keys, Gradient::of_several(crm.table(), dense, inner));
        assert_eq!(bits(&together), bits(&alone), "micro-batches of {sizes:?}");
    }
}

#[test]
fn dropout_depends_on_seed_and_sample_only() {
    let crm = crm(0.5, Representation::Final);
    let parameters = parameters(&crm, 4);
    let sample = Sample {
        fields: vec![1, 2, 3],
        items: vec![4, 5],
        ratings: vec![28, 29],
        numbers: vec![0.5, -0.5],
        similarities: vec![0.9, -0.2],
        label: 1.0,
    };
    let inputs = [sample.input(), sample.input()];
    let run = |keys: &[u64], seed| {
        let mut gradient = Gradient::zero(crm.table(), crm.num_parameters() - crm.table().len());
        let ws = &mut Workspace::default();
        let inputs = &inputs[..keys.len()];
        let labels = &[1.0, 1.0][..keys.len()];
        let parameters = Parameters::whole(crm.table(), &parameters);
        crm.loss_and_gradient(parameters, ws, inputs, labels, keys, seed, 1.0, &mut gradient)
    };
    assert_eq!(run(&[7], 1), run(&[7], 1));
    assert_ne!(run(&[7], 1), run(&[7], 2));
    assert_ne!(run(&[7], 1), run(&[8], 1));
    assert!((run(&[7, 8], 1) - run(&[7], 1) - run(&[8], 1)).abs() < 1e-5);
}

/// The file of ranks that hold some rows each is that of one which holds them all.
#[test]
fn ranks_that_share_the_table_write_the_file_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let crm = crm(0.1, Representation::User);
    let whole = dir.path().join("whole.safetensors");
    crm.save(&crm.init(3), &whole).unwrap();
    for world_size in [2, 4] {
        let path = dir.path().join(format!("{world_size}.safetensors"));
        with_ranks(world_size, |mut comm| {
            let share = TableShare::part(crm.table(), comm.rank(), world_size);
            let parameters = crm.init_share(3, share);
            let (rows, dense) = parameters.split_at(share.held().len());
            let write = |rows: &mut Rows<'_>| crm.save_rows(dense, &path, rows);
            gather_rows(share, rows, 2, &mut comm, write).unwrap();
        });
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap());
    }
}

#[test]
fn the_file_comes_back_and_damage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("crm.safetensors");
    let crm = crm(0.1, Representation::User);
    let saved = crm.init(3);
    crm.save(&saved, &path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let trained = TrainedCrm::open(&path, Representation::User).unwrap();
    let Parameters { table, rows, dense } = trained.parameters();
    assert_eq!(([table, dense].concat(), rows), (saved.clone(), None));
    assert_eq!(trained.crm().tensors(), crm.tensors());
    drop(trained);
    // What the gates are given is no part of it.
    let other = self::crm(0.1, Representation::Hidden);
    other.save(&saved, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the file knows of no representation");
    let dims = [(Representation::User, &crm), (Representation::Hidden, &other)];
    for (representation, crm) in dims {
        let trained = TrainedCrm::open(&path, representation).unwrap();
        assert_eq!(trained.crm().representation_dim(), crm.representation_dim());
    }
    crm.save(&saved, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same bytes each time");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for position in (0..header).chain((header..bytes.len()).step_by(97)) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        std::fs::write(&path, damaged).unwrap();
        // Only blanks after the header may change: every setting is hashed, as the values are.
        if TrainedCrm::open(&path, Representation::User).is_ok() {
            assert!(bytes[position].is_ascii_whitespace(), "byte {position}");
        }
        std::fs::write(&path, &bytes[..position]).unwrap();
        let error = TrainedCrm::open(&path, Representation::User).unwrap_err();
        let rebuilt =
            matches!(&error, TrainerError::Remake { remedy: Remedy::Rebuild("pretrain"), .. });
        assert!(rebuilt && error.to_string().contains("crm.safetensors"), "{error}");
    }
}
