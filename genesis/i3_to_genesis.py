#!/usr/bin/env python
"""Bring events out of IceTray: i3 files in, one .npz file of plain tables out.

Copy this one file into an IceTray environment. It needs NumPy and icecube, and nothing of genesis:

    python i3_to_genesis.py -g GCD.i3.gz -p InIceDSTPulses -o events.npz Level2_*.i3.zst

Then, where genesis is installed: genesis convert events.npz events.h5

The tables are:

    one row a pulse: event, string, dom, charge [pe], time [ns]
    label:           energy [GeV], zenith, azimuth [rad], x, y, z [m]; NaN where unknown
    kind:            0 unknown, 1 cascade, 2 track
    geometry:        string, dom, x, y, z [m], relative efficiency
    assumptions:     a list of sentences

Times count from the neutrino's interaction; where no frame holds a tree of simulated particles, from the first pulse
of each event. Where some do, events without one are dropped and counted.
"""
import argparse
import os
import sys
import tempfile

import numpy as np

IN_ICE = 60, 86  # DOM numbers above the first are IceTop's on strings up to the second; the Upgrade's have more modules
NEUTRINOS = ('NuE', 'NuEBar', 'NuMu', 'NuMuBar', 'NuTau', 'NuTauBar')
MUONS, TAUS = ('MuMinus', 'MuPlus'), ('TauMinus', 'TauPlus')
UNKNOWN, CASCADE, TRACK = 0, 1, 2


def name_of(particle):
    return str(particle.type).split('.')[-1]


def in_ice(string, dom):
    last_dom, last_string = IN_ICE
    return string >= 1 and dom >= 1 and (dom <= last_dom or string > last_string)


def read_geometry(frame):
    """(n, 6) string, number, x, y, z and 1 of the modules in the ice.

    The last is the relative efficiency, which `calibrate` fills in.
    """
    modules = {}
    for key, om in frame['I3Geometry'].omgeo.items():
        if not in_ice(key.string, key.om):
            continue
        place = om.position.x, om.position.y, om.position.z
        modules.setdefault((key.string, key.om), []).append(place)  # the Upgrade's have an entry for each PMT
    rows = [key + tuple(np.mean(pmts, axis=0)) + (1.0,) for key, pmts in sorted(modules.items())]
    return np.array(rows, dtype=float).reshape(-1, 6)


def calibrate(geometry, frame):
    """Relative efficiencies of the modules, where the calibration knows them: the mean of their PMTs."""
    known = {}
    for key, calibration in frame['I3Calibration'].dom_cal.items():
        efficiency = float(calibration.relative_dom_eff)
        if np.isfinite(efficiency) and efficiency > 0:
            known.setdefault((key.string, key.om), []).append(efficiency)
    for row in geometry:
        module = int(row[0]), int(row[1])
        row[5] = np.mean(known.get(module, [1.0]))


def interactions(tree, particle):
    """All neutrinos that interact, from this particle on, with what comes out: [(neutrino, daughters)]."""
    daughters = list(tree.children(particle))
    below = [found for d in daughters for found in interactions(tree, d)]
    products = [d for d in daughters if name_of(d) not in NEUTRINOS]
    if name_of(particle) in NEUTRINOS and products:  # else it is only passed on, to itself
        return [(particle, products)] + below
    return below


def interaction(tree, centre=(0.0, 0.0, 0.0)):
    """The neutrino whose products are in the ice, and these: (neutrino, products), or None.

    A neutrino may interact on its way, in the Earth: it loses energy, or becomes a tau that decays to another one.
    Of all that interact in the line of the most energetic neutrino, the one is taken whose products begin nearest
    to the detector.
    """
    neutrinos = sorted((p for p in tree if name_of(p) in NEUTRINOS), key=lambda p: -p.energy)
    lines = (interactions(tree, p) for p in neutrinos)
    line = next((found for found in lines if found), None)
    if line is None:
        return None

    def distance(found):
        pos = found[1][0].pos
        return np.linalg.norm(np.subtract((pos.x, pos.y, pos.z), centre))
    return min(line, key=distance)


def kind_of(daughters):
    names = [name_of(d) for d in daughters]
    if any(n in MUONS for n in names):
        return TRACK
    return UNKNOWN if any(n in TAUS for n in names) else CASCADE


def read_pulses(frame, name):
    """[(string, dom, charge, time)] of a pulse map or of a mask of one."""
    from icecube import dataclasses
    pulses = dataclasses.I3RecoPulseSeriesMap.from_frame(frame, name)
    return [(key.string, key.om, p.charge, p.time) for key, series in pulses.items() for p in series]


def pulse_maps(frame):
    return sorted(k for k in frame.keys() if 'Puls' in k)


def label_of(neutrino, products):
    """Energy, direction and vertex; the vertex is where the products begin."""
    vertex = products[0].pos
    return [neutrino.energy, neutrino.dir.zenith, neutrino.dir.azimuth, vertex.x, vertex.y, vertex.z]


class Export(object):
    def __init__(self, pulses, tree):
        self.pulses, self.tree = pulses, tree
        self.rows = []    # of pulses: event, string, dom, charge, time
        self.labels = []  # of each event
        self.kinds = []
        self.known = []   # whether an event has truth
        self.counts = dict(frames=0, without_pulses=0, without_truth=0, ice_top=0, no_charge=0, pulses=0)
        self.geometry = None
        self.calibrated = False
        self.seen = []    # pulse maps of the last frame that lacks ours

    def add(self, frame):
        self.counts['frames'] += 1
        if self.pulses not in frame:
            self.counts['without_pulses'] += 1
            self.seen = pulse_maps(frame)
            return
        centre = self.geometry[:, 2:5].mean(axis=0) if self.geometry is not None else (0.0, 0.0, 0.0)
        found = interaction(frame[self.tree], centre) if self.tree in frame else None
        pulses = self.usable(read_pulses(frame, self.pulses))
        if found is None:
            self.counts['without_truth'] += 1
            zero = min([time for _, _, _, time in pulses] or [0.0])
            label, kind = [np.nan]*6, UNKNOWN
        else:
            neutrino, products = found
            zero = products[0].time
            label, kind = label_of(neutrino, products), kind_of(products)
        event = len(self.labels)
        self.rows += [(event, string, dom, charge, time - zero) for string, dom, charge, time in pulses]
        self.labels.append(label)
        self.kinds.append(kind)
        self.known.append(found is not None)

    def usable(self, pulses):
        """Those in the ice with a charge and a time; the others are counted."""
        kept = []
        for string, dom, charge, time in pulses:
            self.counts['pulses'] += 1
            if not in_ice(string, dom):
                self.counts['ice_top'] += 1
            elif not charge > 0 or not np.isfinite(time):
                self.counts['no_charge'] += 1
            else:
                kept.append((string, dom, charge, time))
        return kept

    def finish(self):
        """A label is known for every event or for none: events without truth go, unless all are without."""
        if all(self.known) or not any(self.known):
            return
        number = np.cumsum(self.known) - 1
        self.rows = [(number[row[0]],) + row[1:] for row in self.rows if self.known[row[0]]]
        self.labels = [label for label, known in zip(self.labels, self.known) if known]
        self.kinds = [kind for kind, known in zip(self.kinds, self.known) if known]

    def assumptions(self):
        """What was assumed and dropped, as sentences that go with the events."""
        counts = self.counts
        if any(self.known):
            time, fate = 'time: counts from the interaction', 'were dropped'
        else:
            time = 'time: counts from the first pulse; no event has a tree of simulated particles'
            fate = 'were kept, without labels'
        return [
            'pulse map: %s' % self.pulses,
            '%(ice_top)d pulses of IceTop and %(no_charge)d without charge or time were dropped' % counts,
            'a module of several PMTs stands in the middle of them',
            '%(without_pulses)d of %(frames)d frames had no such pulse map and were dropped' % counts,
            'energy, zenith, azimuth: of the neutrino whose products are in the ice, '
            'vertex: where they begin (%s)' % self.tree,
            time,
            '%d events without a neutrino in %s %s' % (counts['without_truth'], self.tree, fate),
            'kind: a muon makes a track, a tau is unknown, all else a cascade',
        ]

    def tables(self):
        """The arrays of the file."""
        rows = np.array(self.rows, dtype=float).reshape(-1, 5)
        return dict(
            event=rows[:, 0].astype(np.int64),
            string=rows[:, 1].astype(np.int32),
            dom=rows[:, 2].astype(np.int32),
            charge=rows[:, 3],
            time=rows[:, 4],
            label=np.array(self.labels, dtype=float).reshape(-1, 6),
            kind=np.array(self.kinds, dtype=np.uint8),
            geometry=self.geometry,
            assumptions=np.array(self.assumptions(), dtype=str),
        )

    def write(self, path):
        """All of the file or none of it."""
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), suffix='.tmp')
        try:
            with os.fdopen(handle, 'wb') as f:
                np.savez_compressed(f, **self.tables())
                f.flush()
                os.fsync(f.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)


def arguments(argv):
    a = argparse.ArgumentParser(description='i3 files to one .npz file that genesis reads')
    a.add_argument('files', nargs='+', help='i3 files')
    a.add_argument('-g', '--gcd', help='GCD file; not needed where the i3 files hold a geometry')
    a.add_argument('-p', '--pulses', default='InIceDSTPulses',
                   help='pulse map, or mask of one (default InIceDSTPulses)')
    a.add_argument('-t', '--tree', default='I3MCTree', help='tree of the simulated particles (default I3MCTree)')
    a.add_argument('-s', '--stream', default='Physics', help='frames to take: Physics (default) or DAQ')
    a.add_argument('--sub-event-stream', default='InIceSplit',
                   help='of Physics frames; "any" takes all (default InIceSplit)')
    a.add_argument('-o', '--out', required=True, help='.npz file to write')
    return a.parse_args(argv)


def of_sub_event_stream(frame, wanted):
    """Whether a Physics frame is of the split that is wanted; a frame without a header is."""
    if wanted == 'any' or 'I3EventHeader' not in frame:
        return True
    return frame['I3EventHeader'].sub_event_stream == wanted


def read_detector(export, frame):
    """The first geometry, and the first calibration after it."""
    if 'I3Geometry' in frame and export.geometry is None:
        export.geometry = read_geometry(frame)
    if 'I3Calibration' in frame and export.geometry is not None and not export.calibrated:
        calibrate(export.geometry, frame)
        export.calibrated = True


def fail(message):
    sys.exit('i3_to_genesis: ' + message)


def main(argv=None):
    a = arguments(argv)
    from icecube import dataio, icetray
    stop = getattr(icetray.I3Frame, a.stream, None)
    if stop is None:
        fail('no such stream: %s (Physics or DAQ)' % a.stream)
    if not a.out.endswith('.npz'):
        fail('the output must end in .npz, got %s' % a.out)
    export = Export(a.pulses, a.tree)
    for path in ([a.gcd] if a.gcd else []) + a.files:
        if not os.path.exists(path):
            fail('no file %s' % path)
        for frame in dataio.I3File(path):
            read_detector(export, frame)
            if path == a.gcd or frame.Stop != stop:
                continue
            if a.stream != 'Physics' or of_sub_event_stream(frame, a.sub_event_stream):
                export.add(frame)
    if export.geometry is None or not len(export.geometry):
        fail('no I3Geometry in these files: pass the GCD file with -g')
    if not export.labels:
        fail('no frame holds %s. Those seen: %s' % (a.pulses, ', '.join(export.seen) or 'none'))
    export.finish()
    export.write(a.out)
    found = len(export.labels), export.counts['pulses'], len(export.rows), a.out
    print('%d events, %d pulses in, %d out, written to %s' % found)
    for line in export.assumptions():
        print(line)


if __name__ == '__main__':
    main()
