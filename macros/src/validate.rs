//! Rejects what cannot be expanded faithfully, and says what to write instead.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{Attribute, GenericArgument, Path, PathArguments, Type};

use crate::attributes::{Forward, Problems};
use crate::parse::{is_parameter, Field, Network};
use crate::wiring::{Part, Wiring};

/// Checks everything, and notes all problems at once.
pub fn validate(arguments: &TokenStream, network: &Network, problems: &mut Problems) {
    if !arguments.is_empty() {
        problems.at(
            arguments,
            "`#[lopt::network]` takes no arguments: write it alone, and what you want to say as \
             `#[lopt(..)]` below it",
        );
    }
    for lifetime in network.generics().lifetimes() {
        problems.at(
            lifetime,
            "a network owns its layers and has no lifetimes: remove it, type and constant \
             parameters are supported",
        );
    }
    for attribute in &network.item.attrs {
        check_struct_attribute(attribute, problems);
    }
    for field in &network.fields {
        problems.with_field(Some(&field.name));
        check_field_attributes(field, problems);
        check_options(field, &network.forward, problems);
        check_type(&field.ty, problems);
    }
    problems.with_field(None);
    if let Forward::Wired(wiring) = &network.forward {
        check_wiring(wiring, network, problems);
    }
}

fn check_struct_attribute(attribute: &Attribute, problems: &mut Problems) {
    let path = attribute.path();
    let ours = path.segments.len() == 2 && path.segments[0].ident == "lopt";
    if ours && path.segments[1].ident == "network" {
        problems.at(attribute, "`#[lopt::network]` is there twice: remove one");
    }
}

fn check_field_attributes(field: &Field, problems: &mut Problems) {
    for attribute in &field.attributes {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            problems.at(
                attribute,
                "a layer cannot depend on `cfg`: put it on the struct, and write one struct for \
                 each case",
            );
        }
    }
}

/// Whether what is said about a field makes sense together.
fn check_options(field: &Field, forward: &Forward, problems: &mut Problems) {
    let options = &field.options;
    let own = !matches!(forward, Forward::Sequence);
    if let (Some(_), Some(skip)) = (options.frozen, options.skip) {
        let problem = "`frozen` already leaves it out of the flat vector: remove `skip`";
        problems.at_span(skip, problem);
    }
    if let Some(residual) = options.residual.filter(|_| own) {
        let name = &field.ident;
        problems.at_span(
            residual,
            format!(
                "the forward pass is your own: remove `residual`, and write `_ + {name}` in \
                 `#[lopt(forward(..))]`"
            ),
        );
    }
    if let Some((init, _)) = options.init.filter(|_| !field.is_parameter()) {
        let problem =
            "`init` is for a `lopt::nn::Parameter`: remove it, layers are initialised as \
                       dfdx does";
        problems.at_span(init, problem);
    }
    if field.is_parameter() && !own {
        problems.at(
            &field.ty,
            "a bare tensor is not applied to anything: put `#[lopt(forward)]` on the struct and \
             implement dfdx's `Module` for what is built",
        );
    }
}

fn check_wiring(wiring: &Wiring, network: &Network, problems: &mut Problems) {
    let mut last: Option<usize> = None;
    let mut named = vec![false; network.fields.len()];
    for ident in wiring.fields() {
        let Some(position) = network.position(ident) else {
            problems.at(
                ident,
                format!(
                    "there is no field `{ident}`: name a field, or the type of a layer such as \
                     `ReLU`"
                ),
            );
            continue;
        };
        let field = &network.fields[position];
        if std::mem::replace(&mut named[position], true) {
            problems.at(
                ident,
                format!(
                    "field `{ident}` is named twice: lopt cannot follow a layer that is applied \
                     more than once, so name it nowhere and write `..` in both places"
                ),
            );
        } else if let Some(last) = last.filter(|&last| position < last) {
            let before = &network.fields[last].ident;
            problems.at(
                ident,
                format!(
                    "field `{ident}` is used after `{before}`: put it after `{before}` in the \
                     struct too, fields are to be in the order of the wiring"
                ),
            );
        } else if field.is_parameter() {
            problems.at(
                ident,
                format!(
                    "field `{ident}` is a bare tensor, whose use lopt does not know: write `..` \
                     instead of it"
                ),
            );
        }
        last = last.max(Some(position));
    }
    let parts = wiring.parts();
    if !parts.iter().any(|part| matches!(part, Part::Unknown)) {
        for (field, _) in network.fields.iter().zip(named).filter(|(_, named)| !named) {
            problems.at(
                &field.ident,
                format!(
                    "field `{}` is not in the wiring: name it where it is applied, or write `..` \
                     there",
                    field.ident
                ),
            );
        }
    }
    for part in parts {
        let Part::Layer(ty) = part else { continue };
        if network.mentions_parameter(ty.to_token_stream()) {
            let ty = ty.to_token_stream();
            problems.at(&ty, format!("`{ty}` depends on the struct's parameters: make it a field"));
        }
    }
    check_inputs(wiring, problems);
}

/// `_` is of use next to something else only.
fn check_inputs(wiring: &Wiring, problems: &mut Problems) {
    for step in &wiring.0 {
        let parts = step.parts();
        if let (Some(Part::Input(span)), false) =
            (parts.first(), parts.iter().any(|part| !matches!(part, Part::Input(_))))
        {
            let problem = "`_` is what arrives, next to something else, as in `_ + block`: remove \
                           it here";
            problems.at_span(*span, problem);
        }
        for part in step.parts() {
            if let Part::Nested(wiring) = part {
                check_inputs(wiring, problems);
            }
        }
    }
}

fn check_type(ty: &Type, problems: &mut Problems) {
    match ty {
        Type::Path(path) => check_path(ty, &path.path, problems),
        Type::Paren(inner) => check_type(&inner.elem, problems),
        Type::Group(inner) => check_type(&inner.elem, problems),
        Type::Macro(_) => {}
        Type::Tuple(tuple) if tuple.elems.is_empty() => {
            problems.at(ty, "dfdx 0.13 cannot build `()`: remove the field")
        }
        Type::Tuple(tuple) => {
            if tuple.elems.len() > 6 {
                problems.at(
                    ty,
                    "dfdx's tuples hold at most six layers: write a struct with \
                     `#[lopt::network]`, which holds any number",
                );
            }
            for element in &tuple.elems {
                if is_parameter(element) {
                    problems.at(
                        element,
                        "a bare tensor is a field of its own: take it out of the tuple",
                    );
                }
                check_type(element, problems);
            }
        }
        Type::Array(_) | Type::Slice(_) => {
            problems.at(ty, "not supported yet: arrays of layers. Write one field for each layer")
        }
        Type::Reference(_) | Type::Ptr(_) => problems
            .at(ty, "a network owns its layers: write the layer's type without the reference"),
        _ => problems.at(
            ty,
            "this is not a layer: write a type such as `Linear<64, 10>` or `ReLU`, or the name of \
             another network",
        ),
    }
}

/// Types that are known not to work here, with what to do about it.
///
/// Only plain names and paths that start in dfdx are looked at: anything else is a type of the
/// user's own.
fn check_path(ty: &Type, path: &Path, problems: &mut Problems) {
    let (Some(first), Some(last)) = (path.segments.first(), path.segments.last()) else { return };
    let plain = path.segments.len() == 1;
    if !plain && first.ident != "dfdx" {
        return;
    }
    let name = last.ident.to_string();
    match name.as_str() {
        // Plain names of these are lopt's.
        "Conv2D" | "AvgPool2D" | "MaxPool2D" | "Flatten2D" if !plain => problems.at(
            ty,
            format!(
                "dfdx 0.13 has `{name}` on nightly Rust only: write `lopt::nn::{name}`, which \
                 works on stable Rust"
            ),
        ),
        "ConvTrans2D" | "MinPool2D" | "Upscale2D" | "Upscale2DBy" => problems.at(
            ty,
            format!(
                "not supported yet: `{name}`, which dfdx 0.13 has on nightly Rust only. \
                 `lopt::nn` has `Conv2D`, `MaxPool2D` and `AvgPool2D`. (If this is a type of your \
                 own, write `self::{name}`.)"
            ),
        ),
        "Tensor" => problems.at(
            ty,
            "a tensor's dtype and device come when the network is built: write \
             `lopt::nn::Parameter<Rank1<10>>`",
        ),
        "PhantomData" => problems.at(
            ty,
            "a network needs no markers: remove the field, and every parameter that no layer uses",
        ),
        "Linear" | "UnbiasedLinear" if arguments(&last.arguments) > 2 => problems.at(
            ty,
            format!(
                "this is the built form of the layer: write `{name}<I, O>` from `dfdx::prelude`, \
                 without element type and device"
            ),
        ),
        _ => {}
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
