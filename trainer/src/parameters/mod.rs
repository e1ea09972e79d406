//! Trained parameters, whichever model they are of: one flat vector of named tensors, its gradient, the table it may
//! begin with, and its file.

mod file;
mod gradient;
mod init;
mod layout;
mod sink;
mod table;

pub(crate) use file::{NamedShape, ParameterFile, serialize};
pub use gradient::{Gradient, GradientSum, Losses};
pub(crate) use init::splitmix;
pub use layout::{Init, ParameterLayout, TensorLayout};
pub use sink::{GradientSink, Ready};
pub use table::{Parameters, Table, TableShare};
