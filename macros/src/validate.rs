//! Rejects what cannot be expanded faithfully, and says what to write instead.

use proc_macro2::TokenStream;
use syn::{Attribute, Error, GenericArgument, Path, PathArguments, Result, Type};

use crate::parse::{is_lopt, Layer, Network};

/// Field attributes that are reserved for later.
const RESERVED: [&str; 4] = ["forward", "frozen", "residual", "skip"];

/// Checks everything, and reports all problems at once.
pub fn validate(arguments: &TokenStream, network: &Network) -> Result<()> {
    let mut problems = Problems(None);
    if !arguments.is_empty() {
        problems.add(Error::new_spanned(
            arguments,
            "`#[lopt::network]` takes no arguments: write it alone",
        ));
    }
    for lifetime in network.generics().lifetimes() {
        problems.add(Error::new_spanned(
            lifetime,
            "a network owns its layers and has no lifetimes: remove it, type and constant \
             parameters are supported",
        ));
    }
    for attribute in &network.item.attrs {
        check_struct_attribute(attribute, &mut problems);
    }
    for layer in &network.layers {
        check_field_attributes(layer, &mut problems);
        check_type(&layer.ty, &mut problems);
    }
    problems.0.map_or(Ok(()), Err)
}

struct Problems(Option<Error>);

impl Problems {
    fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            None => self.0 = Some(error),
        }
    }
}

fn check_struct_attribute(attribute: &Attribute, problems: &mut Problems) {
    if is_lopt(attribute) {
        problems.add(unknown_attribute(attribute));
    }
    let path = attribute.path();
    let ours = path.segments.len() == 2 && path.segments[0].ident == "lopt";
    if ours && path.segments[1].ident == "network" {
        problems
            .add(Error::new_spanned(attribute, "`#[lopt::network]` is there twice: remove one"));
    }
}

fn check_field_attributes(layer: &Layer, problems: &mut Problems) {
    for attribute in &layer.attributes {
        if is_lopt(attribute) {
            problems.add(unknown_attribute(attribute));
        } else if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            problems.add(Error::new_spanned(
                attribute,
                "a layer cannot depend on `cfg`: put it on the struct, and write one struct for \
                 each case",
            ));
        }
    }
}

fn unknown_attribute(attribute: &Attribute) -> Error {
    let mut name = None;
    // Only the first word matters; what follows it may be anything.
    let _ = attribute.parse_nested_meta(|meta| {
        name.get_or_insert(meta.path);
        Ok(())
    });
    match name.as_ref().and_then(Path::get_ident) {
        Some(word) if RESERVED.iter().any(|reserved| word == reserved) => Error::new_spanned(
            attribute,
            format!(
                "not supported yet: `{word}`. Remove it, or implement dfdx's `Module` and \
                 `lopt::network::Layer` for a type of your own"
            ),
        ),
        _ => Error::new_spanned(
            attribute,
            "unknown attribute: `#[lopt::network]` has no attributes on structs or fields, remove \
             it",
        ),
    }
}

fn check_type(ty: &Type, problems: &mut Problems) {
    match ty {
        Type::Path(path) => check_path(ty, &path.path, problems),
        Type::Paren(inner) => check_type(&inner.elem, problems),
        Type::Group(inner) => check_type(&inner.elem, problems),
        Type::Macro(_) => {}
        Type::Tuple(tuple) if tuple.elems.is_empty() => {
            problems.add(Error::new_spanned(ty, "dfdx 0.13 cannot build `()`: remove the field"))
        }
        Type::Tuple(tuple) => {
            if tuple.elems.len() > 6 {
                problems.add(Error::new_spanned(
                    ty,
                    "dfdx's tuples hold at most six layers: write a struct with \
                     `#[lopt::network]`, which holds any number",
                ));
            }
            tuple.elems.iter().for_each(|element| check_type(element, problems));
        }
        Type::Array(_) | Type::Slice(_) => problems.add(Error::new_spanned(
            ty,
            "not supported yet: arrays of layers. Write one field for each layer",
        )),
        Type::Reference(_) | Type::Ptr(_) => problems.add(Error::new_spanned(
            ty,
            "a network owns its layers: write the layer's type without the reference",
        )),
        _ => problems.add(Error::new_spanned(
            ty,
            "this is not a layer: write a type such as `Linear<64, 10>` or `ReLU`, or the name of \
             another network",
        )),
    }
}

/// Layers of dfdx that are known not to work here, with what to do about it.
///
/// Only plain names and paths that start in dfdx are looked at: anything else is a type of the
/// user's own.
fn check_path(ty: &Type, path: &Path, problems: &mut Problems) {
    let (Some(first), Some(last)) = (path.segments.first(), path.segments.last()) else { return };
    if path.segments.len() > 1 && first.ident != "dfdx" {
        return;
    }
    let name = last.ident.to_string();
    let unsupported = |what: &str, instead: &str| {
        let own = format!("(If this is a type of your own, write `self::{name}`.)");
        Some(format!("not supported yet: {what}. {instead} {own}"))
    };
    let problem = match name.as_str() {
        "Conv2D" | "ConvTrans2D" | "AvgPool2D" | "MaxPool2D" | "MinPool2D" | "Flatten2D"
        | "Upscale2D" | "Upscale2DBy" => unsupported(
            &format!("`{name}`, which dfdx 0.13 has on nightly Rust only"),
            "Write a network of linear layers.",
        ),
        "AvgPoolGlobal" | "MaxPoolGlobal" | "MinPoolGlobal" | "BatchNorm2D" | "Bias2D"
        | "Reshape" => unsupported(
            &format!("`{name}`, which works on images"),
            "Write a network of linear layers.",
        ),
        "Residual" | "GeneralizedResidual" | "SplitInto" | "AddInto" => unsupported(
            &format!("`{name}`, which branches"),
            "Write the layers one after the other.",
        ),
        "Embedding"
        | "MultiHeadAttention"
        | "Transformer"
        | "TransformerEncoder"
        | "TransformerEncoderBlock"
        | "TransformerDecoder"
        | "TransformerDecoderBlock" => {
            unsupported(&format!("`{name}`"), "Write a feed-forward network.")
        }
        "Tensor" => Some(
            "a tensor alone is not a layer: use the layer that holds it, such as `Linear<64, 10>`, \
             or implement dfdx's `Module` and `lopt::network::Layer` for a type of your own"
                .to_owned(),
        ),
        "PhantomData" => Some(
            "a network needs no markers: remove the field, and every parameter that no layer uses"
                .to_owned(),
        ),
        "Linear" | "UnbiasedLinear" if arguments(&last.arguments) > 2 => Some(format!(
            "this is the built form of the layer: write `{name}<I, O>` from `dfdx::prelude`, \
             without element type and device"
        )),
        _ => None,
    };
    if let Some(problem) = problem {
        problems.add(Error::new_spanned(ty, problem));
    }
}

fn arguments(arguments: &PathArguments) -> usize {
    match arguments {
        PathArguments::AngleBracketed(list) => {
            list.args.iter().filter(|a| !matches!(a, GenericArgument::Lifetime(_))).count()
        }
        _ => 0,
    }
}
