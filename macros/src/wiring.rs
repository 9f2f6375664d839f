//! The wiring of a hand-written forward pass, as
//! `#[lopt(forward(..))]` states it.
//!
//! ```text
//! wiring := step, step, ..          one after the other
//! step   := part + part + ..        same input, outputs added
//!         | part | part | ..        same input, outputs side by side
//! part   := field                   a field, applied as a whole
//!         | Type                    a layer without parameters, such as ReLU
//!         | _                       what arrives, unchanged
//!         | ..                      something that lopt is not to look into
//!         | (wiring)
//! ```

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, Ident, Result, Token, TypePath};

/// Steps one after the other.
pub struct Wiring(pub Vec<Step>);

/// What becomes of what arrives.
pub enum Step {
    /// One part.
    Part(Part),
    /// The same input for each, outputs added.
    Sum(Vec<Part>),
    /// The same input for each, outputs side by side.
    Split(Vec<Part>),
}

/// One way through.
pub enum Part {
    /// A name in lower case: a field.
    Field(Ident),
    /// The type of a layer.
    Layer(TypePath),
    /// `_`
    Input(Span),
    /// `..`
    Unknown,
    /// In parentheses.
    Nested(Wiring),
}

impl Wiring {
    /// Every part, nested ones after what holds them, in the order of writing.
    pub fn parts(&self) -> Vec<&Part> {
        let mut parts = Vec::new();
        for step in &self.0 {
            for part in step.parts() {
                parts.push(part);
                if let Part::Nested(wiring) = part {
                    parts.extend(wiring.parts());
                }
            }
        }
        parts
    }

    /// The fields it names, in order.
    pub fn fields(&self) -> impl Iterator<Item = &Ident> {
        self.parts().into_iter().filter_map(|part| match part {
            Part::Field(ident) => Some(ident),
            _ => None,
        })
    }
}

impl Step {
    pub fn parts(&self) -> &[Part] {
        match self {
            Self::Part(part) => std::slice::from_ref(part),
            Self::Sum(parts) | Self::Split(parts) => parts,
        }
    }
}

impl Parse for Wiring {
    fn parse(input: ParseStream) -> Result<Self> {
        let steps = Punctuated::<Step, Token![,]>::parse_terminated(input)?;
        Ok(Self(steps.into_iter().collect()))
    }
}

impl Parse for Step {
    fn parse(input: ParseStream) -> Result<Self> {
        let first = input.parse()?;
        let (sum, split) = (input.peek(Token![+]), input.peek(Token![|]));
        if !sum && !split {
            return Ok(Self::Part(first));
        }
        let mut parts = vec![first];
        while input.peek(Token![+]) || input.peek(Token![|]) {
            if input.peek(Token![+]) != sum {
                return Err(input.error("`+` and `|` in one step: put one of them in parentheses"));
            }
            let _ = input.parse::<Option<Token![+]>>()?;
            let _ = input.parse::<Option<Token![|]>>()?;
            parts.push(input.parse()?);
        }
        Ok(if sum { Self::Sum(parts) } else { Self::Split(parts) })
    }
}

impl Parse for Part {
    fn parse(input: ParseStream) -> Result<Self> {
        if input.peek(Token![_]) {
            return Ok(Self::Input(input.parse::<Token![_]>()?.span()));
        }
        if input.peek(Token![..]) {
            input.parse::<Token![..]>()?;
            return Ok(Self::Unknown);
        }
        if input.peek(syn::token::Paren) {
            let content;
            let parentheses = syn::parenthesized!(content in input);
            let wiring: Wiring = content.parse()?;
            if wiring.0.is_empty() {
                let problem = "nothing between the parentheses: write `_` for what arrives";
                return Err(Error::new(parentheses.span.join(), problem));
            }
            return Ok(Self::Nested(wiring));
        }
        let Ok(ty) = input.parse::<TypePath>() else {
            return Err(input.error(
                "expected a field, the type of a layer such as `ReLU`, `_` (what arrives), `..` \
                 (not to be looked into), or steps in parentheses",
            ));
        };
        match ty.path.get_ident() {
            Some(ident) if is_field_name(ident) => Ok(Self::Field(ident.clone())),
            _ => Ok(Self::Layer(ty)),
        }
    }
}

/// Types start with a capital letter.
fn is_field_name(ident: &Ident) -> bool {
    !ident.unraw().to_string().starts_with(char::is_uppercase)
}
