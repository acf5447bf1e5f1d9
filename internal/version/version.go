package version

import "runtime/debug"

// text is set by the linker: -X github.com/blixard/blixard/internal/version.text=v1.2.3
var text string

// unknown stands where neither the linker nor the Go tool noted a version.
const unknown = "unreleased"

// revisionDigits of a commit's hash tell it from all others of the project.
const revisionDigits = 12

// String gives the version: the one that the build set, else the commit that the
// Go tool noted, else "unreleased".
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return of(text, info)
}

func of(text string, info *debug.BuildInfo) string {
	if text != "" {
		return text
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, changed := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= revisionDigits:
			revision = s.Value[:revisionDigits]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "-changed"
		}
	}
	if revision == "" {
		return unknown
	}
	return revision + changed
}
